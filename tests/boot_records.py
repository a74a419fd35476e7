"""Journal records of a boot: loads of devices, each with its wait and its modules; `boot`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.journal_files import Fields, record


@dataclass(frozen=True)
class Loaded:
    """A load of the boot; times in milliseconds since the kernel's start."""

    module: str
    begin: int
    wait: int
    took: int
    needed: tuple[tuple[str, int], ...] = ()
    """Modules that came with it, each with the duration of its load."""
    device: str = ""
    """Path /devices/…; empty: of the boot list."""
    name: str = ""
    result: str = "loaded"
    source: str = ""
    """KMODD_SOURCE; empty: coldplug for a device, else boot."""


def boot(loads: Sequence[Loaded], done: int = 0, number: int = 1) -> list[Fields]:
    """The records of a boot. done: when coldplug had ended; 0: it has not. number: which boot (journal_files.BOOTS)."""
    records: list[tuple[float, Fields]] = [(0.0, record("f122", 0.001, number, MESSAGE="Listening, kernel 6.1.0-test"))]
    for request, load in enumerate(loads, 1):
        own = load.took - sum(duration for _, duration in load.needed)
        modules = (*load.needed, (load.module, own))
        fields: dict[str, str | Sequence[str]] = {
            "KMODD_RESULT": load.result, "KMODD_SOURCE": load.source or ("coldplug" if load.device else "boot"),
            "KMODD_MODULE": load.module, "KMODD_ALIAS": f"x:{load.module}", "KMODD_REQUEST_ID": str(request),
            "KMODD_DURATION_USEC": str(load.took * 1000),
        }  # fmt: skip
        if load.device:
            fields |= {"KMODD_DEVPATH": load.device, "KMODD_SUBSYSTEM": "pci"}
        if load.name:
            fields["KMODD_DEVICE_NAME"] = load.name
        if load.result == "loaded":
            fields |= {
                "KMODD_BEGIN_MONOTONIC_USEC": str(load.begin * 1000), "KMODD_WAIT_USEC": str(load.wait * 1000),
                "KMODD_MODULES": [name for name, _ in modules],
                "KMODD_INIT_USEC": [f"{name}:{duration * 1000}" for name, duration in modules],
            }  # fmt: skip
        end = (load.begin + load.wait + load.took) / 1000
        records.append((end, record("f101", end, number, **fields)))
    if done:
        message = f"Coldplug done in {done}ms: {len(loads)} devices, {len(loads)} modules"
        records.append((done / 1000, record("f126", done / 1000, number, MESSAGE=message)))
    return [fields for _, fields in sorted(records, key=lambda each: each[0])]
