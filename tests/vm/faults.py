"""What the tests of faults share: a guest with every module of ours, devices at will, waiting for outcomes.

Nothing here waits for udevd: after a fault in the kernel its workers may hang, and kmodd must not care.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from typing import Any, Final

import pytest

from tests.vm.fixture_modules import add_all
from tests.vm.image import Image
from tests.vm.journal import Record, text
from tests.vm.machine import GuestError, Machine
from tests.vm.payload import Payload

#: Our modprobe, for a machine without kmod.
MODPROBE: Final = "/usr/lib/kmodd/bin/modprobe"

#: Parameters of a fixture whose tests run with one lane, and in `make test-long` with lanes that open.
LANES: Final = ("1", pytest.param("auto", marks=pytest.mark.long))

_BUS: Final = "/sys/module/kt_bus/parameters"


def prepare_faults(payload: Payload, image: Image, *, conf: str = "", without: Collection[str] = ()) -> None:
    """Every module of ours, those `without` known to no index; kt_bus is loaded at boot; `conf`: lines of [Kmodd]."""
    add_all(payload, image, without=without)
    payload.write("/etc/modules-load.d/faults.conf", "kt_bus\n")
    if conf:
        payload.write("/etc/kmodd/kmodd.conf", f"[Kmodd]\n{conf}")


def set_lanes(payload: Payload, lanes: str) -> None:
    """`Lanes=`, whatever kmodd.conf says later."""
    payload.write("/usr/lib/kmodd/kmodd.conf.d/20-lanes.conf", f"[Kmodd]\nLanes={lanes}\n")


def without_udevd(payload: Payload) -> None:
    """udevd loads nothing either, not even while kmodd is down: what is loaded then was loaded by kmodd."""
    payload.link("/etc/udev/rules.d/80-drivers.rules", "/dev/null")


# ── devices of kt_bus ──────────────────────────────────────────────────────────────────────────────────────────────


def appear(machine: Machine, name: str, count: int = 1) -> None:
    """Make devices that the module `name` wants; the kernel sends an event for each."""
    machine.check(f"echo {name} {count} >{_BUS}/add")


def appear_quietly(machine: Machine, name: str, override: str = "") -> None:
    """Make a device without an event; `override`: its driver_override."""
    machine.check(f"echo {name} 1 {override} >{_BUS}/add_quietly")


def vanish(machine: Machine, name: str) -> None:
    """Take all devices `name` away."""
    machine.check(f"echo {name} >{_BUS}/remove")


def let_go(machine: Machine, module: str = "kt_slow") -> None:
    """Have the init of kt_slow, or what kt_async has left to do, end now: nothing need be quicker than a clock."""
    machine.check(f"echo 0 >/sys/module/{module}/parameters/seconds")


def synthetic(machine: Machine, name: str, rounds: int = 1) -> None:
    """Write `add` to the uevent file of each device `name`, as `udevadm trigger` does."""
    loop = f"for d in /sys/bus/platform/devices/{name}.*; do echo add >$d/uevent; done"
    machine.check(f"n=0; while [ $n -lt {rounds} ]; do {loop}; n=$((n+1)); done", 120)


# ── outcomes ────────────────────────────────────────────────────────────────────────────────────────────────


def until(holds: Callable[[], object], timeout: float, what: str) -> None:
    """Ask again and again until it holds; AssertionError with `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, f"not in {timeout:.0f} s: {what}"
        time.sleep(0.3)


def state(machine: Machine, module: str) -> str:
    """What /proc/modules says of it: Live, Loading, Unloading, or "" where it is not."""
    words = machine.modules().get(module, "").split()
    return next((word for word in words if word in ("Live", "Loading", "Unloading")), "")


def until_state(machine: Machine, module: str, wanted: str, timeout: float = 60.0) -> None:
    """Wait until /proc/modules says so."""
    until(lambda: state(machine, module) == wanted, timeout, f"{module} is {wanted or 'gone'}")


def given_to_kernel(machine: Machine, module: str) -> int:
    """How often the kernel has begun to load it; not counted: what it refused before an init."""
    return [load.module for load in machine.module_loads()].count(module)


def record_of(machine: Machine, module: str, result: str, since: int, timeout: float = 60.0) -> Record:
    """Wait for kmodd's record of `result` for `module`."""

    def wanted(record: Record) -> bool:
        return (text(record, "KMODD_MODULE"), text(record, "KMODD_RESULT")) == (module, result)

    return machine.journal.wait_for(wanted, timeout, since)


def trace_again(machine: Machine) -> None:
    """An oops ends all tracing (kernel/panic.c, oops_enter): have it go on, so that loads are counted."""
    machine.check("echo 1 >/sys/kernel/tracing/tracing_on")


def results(machine: Machine, module: str, since: int) -> list[str]:
    """What kmodd has recorded of `module` since a mark."""
    after = machine.journal.after(since)
    return [text(record, "KMODD_RESULT") for record in after if text(record, "KMODD_MODULE") == module]


def until_said(machine: Machine, words: str, timeout: float = 60.0) -> str:
    """Wait until the guest's own journal has a message of kmodd with these words; the answer: the latest one.

    For where so many records come that the serial line, by which `machine.journal` gets them, is minutes behind.
    """
    found = f"journalctl -b -o cat -t kmodd | busybox grep -F '{words}' | busybox tail -n 1"
    until(lambda: machine.run(found, 60).output != "", timeout, words)
    return machine.check(found, 60).strip()


def status(machine: Machine) -> dict[str, Any]:
    """`kmodd status --json`."""
    answer: dict[str, Any] = json.loads(machine.check("kmodd status --json", 60))
    return answer


def settle_kmodd(machine: Machine, timeout: float = 130.0) -> None:
    """Wait until kmodd has answered everything."""
    machine.check("kmodd settle", timeout)


def restart(machine: Machine) -> None:
    """Restart the daemon as an administrator does; so many restarts in a row are no fault here."""
    before = machine.check("systemctl show -P MainPID kmodd").strip()
    machine.check("systemctl reset-failed kmodd; systemctl restart kmodd", 90)
    if machine.check("systemctl show -P MainPID kmodd").strip() in ("0", before):
        raise GuestError("kmodd did not start again")
