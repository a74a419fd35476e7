"""`make demo`: a real kernel, real systemd, kmodd as its module loader; devices are plugged in, the journal says why.

Prints what the guest's `journalctl -t kmodd` says as it comes, a table of what the harness saw from outside, and why a
module was loaded; writes the timeline of the boot to build/timeline.svg.
Last line `demo: OK, D devices, M modules` and exit 0, or `demo: FAILED, …` and exit 1. `--without-kmodd` plays the same
with kmodd's service masked and must fail: the negative control.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Final

from tests import suites
from tests.vm import VmError, say
from tests.vm.devices import DEVICES
from tests.vm.image import ensure_image
from tests.vm.journal import Record, text
from tests.vm.machine import Machine
from tests.vm.payload import REPOSITORY, Payload
from tests.vm.scenario import Plug, plug, remove, settle, stranger_faults
from tests.vm.trace import ModuleLoad

_FIRST: Final = ("e1000e", "virtio-rng-pci", "qemu-xhci", "usb-storage")
_AGAIN: Final = ("e1000e", "usb-storage")  # QEMU 7.2 never lets go of the xHCI controller
_ASKED: Final = "usb_storage"
_TIMELINE: Final = REPOSITORY / "build" / "timeline.svg"
_PLUG_SEC: Final = 300.0  # limit for the modules of one device; an emulated arm64 takes its time
_printing = threading.Lock()


def main(arguments: list[str] | None = None) -> int:
    """Play the scenario; returns the exit status."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--without-kmodd", action="store_true", help="mask kmodd's service: the demo must fail")
    parser.add_argument("--architecture", default="", help="of the guest, as Debian calls it: arm64 (default: amd64)")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _leave)  # so that the machine is ended on the way out
    try:
        plugs, faults = _play(options.architecture, with_kmodd=not options.without_kmodd)
    except VmError as error:
        _show(f"demo: FAILED, {error}")
        return 1
    except KeyboardInterrupt:
        _show("demo: FAILED, interrupted")
        return 1
    _show_table(plugs)
    if faults:
        for fault in faults:
            _show(f"  {fault}")
        _show(f"demo: FAILED, {len(faults)} faults, the first: {faults[0]}")
        return 1
    devices, modules = {each.device.name for each in plugs}, {name for each in plugs for name in each.loaded}
    _show(f"demo: OK, {len(devices)} devices, {len(modules)} modules")
    return 0


def _play(architecture: str, with_kmodd: bool) -> tuple[list[Plug], list[str]]:
    """Boot, coldplug, plug, unplug, plug again; returns the plugs and what was wrong."""
    say(f"downloads and images lie in {suites.cache()}")
    image = ensure_image(architecture=architecture)
    with tempfile.TemporaryDirectory(prefix="kmodd-demo-") as scratch:
        payload = Payload.new(Path(scratch, "payload"))
        payload.install_kmodd(image.suite, image.architecture)
        if not with_kmodd:
            payload.commands.append("systemctl mask kmodd.service")
        with Machine(image, payload, name="the demo's guest", on_record=_show_record) as machine:
            state = machine.wait_boot(900)
            failed = machine.check("systemctl list-units --failed --plain --no-legend | busybox cut -d' ' -f1").split()
            say(f"systemd is {state}, failed units: {' '.join(failed) or 'none'}; waiting for coldplug")
            settle(machine)
            plugs, faults = _plug_all(machine), []
            why = machine.run(f"kmodd why {_ASKED}").output
            timeline = machine.run("kmodd timeline").output
            loads = machine.module_loads()
            if machine.run("systemctl is-active kmodd.service").output.strip() != "active":
                faults.append("kmodd does not run")
    for each in plugs:
        faults += each.faults()
    faults += stranger_faults(loads)
    _show_loads(loads)
    _show(f"\n$ kmodd why {_ASKED}\n{why}")
    _TIMELINE.parent.mkdir(exist_ok=True)
    _TIMELINE.write_text(timeline)
    _show(f"$ kmodd timeline > {_TIMELINE.relative_to(REPOSITORY)}")
    return plugs, faults


def _plug_all(machine: Machine) -> list[Plug]:
    plugs: dict[str, Plug] = {}
    everything: list[Plug] = []
    for name in _FIRST:
        _show(f"── plugging {name}")
        plugs[name] = plug(machine, DEVICES[name], _PLUG_SEC)
        everything.append(plugs[name])
    for name in _AGAIN:
        _show(f"── unplugging {name}, removing {' '.join(plugs[name].loaded)}")
        machine.unplug(DEVICES[name])
        settle(machine)
        remove(machine, plugs[name])
        _show(f"── plugging {name} again")
        everything.append(plug(machine, DEVICES[name], _PLUG_SEC))
    return everything


# ── what is shown ──────────────────────────────────────────────────────────────────────────────────────────────────


def _show(line: str) -> None:
    with _printing:  # records come in a thread of their own
        print(line, flush=True)


def _show_record(record: Record) -> None:
    """One record of the guest, as `journalctl -o short-monotonic` shows it."""
    seconds = int(text(record, "__MONOTONIC_TIMESTAMP") or 0) / 1e6
    _show(f"[{seconds:12.6f}] {text(record, 'MESSAGE')}")


def _show_table(plugs: list[Plug]) -> None:
    rows = [("device", "pattern that matched", "modules it brought")]
    rows += [(each.device.name, each.pattern or "-", " ".join(each.loaded) or "-") for each in plugs]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    _show("")
    for row in rows:
        _show(f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}")
    _show("")


def _show_loads(loads: list[ModuleLoad]) -> None:
    """Who loaded what, by the kernel's own record."""
    loaders: dict[str, list[str]] = {}
    for load in loads:
        who = "initrd" if load.in_initrd else "PID 1" if load.pid == 1 else load.comm
        loaders.setdefault(who, []).append(load.module)
    _show("\nthe kernel's record (tracefs module:module_load):")
    for who, modules in loaders.items():
        _show(f"  {who}, {len(modules)}: {' '.join(modules)}")


def _leave(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
