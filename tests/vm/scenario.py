"""Plug devices into a guest and record, from outside kmodd, what each brought into the kernel.

Two witnesses: /proc/modules before and after each plug, and the kernel's own record of who loaded what (trace.py).
kmodd's journal is what is judged, never what is trusted.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from tests.vm import VmError
from tests.vm.devices import Device
from tests.vm.journal import Record, text, texts
from tests.vm.machine import GuestError, Machine
from tests.vm.trace import ModuleLoad, strangers


@dataclass
class Plug:
    """One device plugged in: the modules that came, those of its own that were there before, what kmodd said."""

    device: Device
    loaded: list[str] = field(default_factory=list)  # in the order of loading
    there_before: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)  # expected and not live in time
    records: list[Record] = field(default_factory=list)

    @property
    def record(self) -> Record:
        """kmodd's record of loading the device's own module, empty if there is none."""
        return next((record for record in self.records if _brought(self.device.module, record)), {})

    @property
    def pattern(self) -> str:
        """The alias pattern that matched, as kmodd recorded it."""
        return text(self.record, "KMODD_PATTERN")

    def faults(self) -> list[str]:
        """What is wrong with it, in words; nothing if all is well."""
        name = self.device.name
        faults = [f"{name}: {module} was there before the plug" for module in sorted(self.there_before)]
        faults += [f"{name}: {module} did not come" for module in sorted(self.missing)]
        if not self.record:
            faults.append(f"{name}: kmodd recorded no load of {self.device.module}")
        elif not self.pattern:
            faults.append(f"{name}: no record of {self.device.module} names a pattern")
        return faults


def plug(machine: Machine, device: Device, timeout: float = 90.0) -> Plug:
    """Plug `device` and wait until its modules are live, kmodd's record of it is there and all is quiet.

    What did not come within `timeout` seconds is in the answer, not an error.
    """
    before, mark = machine.modules(), machine.journal.mark()
    answer = Plug(device, there_before=device.modules & set(before))
    machine.plug(device)
    deadline = time.monotonic() + timeout
    while not device.modules <= set(machine.modules()) and time.monotonic() < deadline:
        time.sleep(0.3)
    running = settle(machine)
    after = machine.modules()
    answer.loaded = [name for name in reversed(after) if name not in before]
    answer.missing = device.modules - set(after)
    if running and device.module in answer.loaded:
        _wait_for_record(machine, device.module, mark)
    answer.records = machine.journal.after(mark)
    return answer


def remove(machine: Machine, plugged: Plug, timeout: float = 60.0) -> None:
    """Unload what a plug brought, so that the next one has to load it again. The device must be unplugged.

    Its own modules must go, or GuestError comes after `timeout` seconds; of the others whatever the kernel lets go.
    """
    deadline = time.monotonic() + timeout
    while True:
        for module in reversed(plugged.loaded):
            machine.run(f"busybox rmmod {module}")
        left = plugged.device.modules & set(machine.modules())
        if not left:
            return
        if time.monotonic() > deadline:
            raise GuestError(f"{', '.join(sorted(left))} did not let go: {machine.modules()}")
        time.sleep(1.0)


def settle(machine: Machine, timeout: float = 120.0) -> bool:
    """Wait until udevd, and kmodd where it runs, have nothing left to do; the answer: does it run?"""
    machine.run(f"udevadm settle --timeout={timeout:.0f}", timeout + 10)
    running = machine.run("systemctl is-active --quiet kmodd.service").status == 0
    if running:
        machine.check("kmodd settle", timeout + 10)
    return running


def stranger_faults(loads: list[ModuleLoad]) -> list[str]:
    """A fault for each task name, but kmodd's loader and PID 1, that loaded modules after switch-root."""
    loaders: dict[str, list[str]] = {}
    for load in strangers(loads):
        loaders.setdefault(load.comm, []).append(load.module)
    return [f"{comm} loaded {len(modules)} modules: {' '.join(modules)}" for comm, modules in loaders.items()]


def _wait_for_record(machine: Machine, module: str, mark: int) -> None:
    """The journal comes by another way than the shell's answer: await the record of the load.

    One that does not come is a fault later.
    """
    with suppress(VmError):
        machine.journal.wait_for(partial(_brought, module), timeout=60.0, since=mark)


def _brought(module: str, record: Record) -> bool:
    """Whether a record is that of a decision that loaded `module`, for a device itself or for what needs it."""
    return text(record, "KMODD_RESULT") == "loaded" and module in texts(record, "KMODD_MODULES")
