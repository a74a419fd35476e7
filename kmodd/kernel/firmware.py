"""Devices that failed for want of a firmware file: read off the kernel's log, kept until the file is there.

A driver asks for its firmware while it probes; where the file is missing the probe fails, and nothing in the kernel
tries it again. Only the log names the file (drivers/base/firmware_loader/main.c).
"""

from __future__ import annotations

import re

from kmodd.dataclass import dataclass
from kmodd.kernel.kmsg import KernelLine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_SAID = (
    r".*: Direct firmware load for (.+) failed with error -2",
    r".*: firmware: failed to load (.+) \(-2\)",
)
"""With -ENOENT alone: another error does not end when a file comes. The second is Debian's own, at times beside the
first; it also tells of files that a driver can do without."""

WORD = b"firmware"
"""Stands in every record of the log that says so."""

MAX_WAITING = 256
"""Devices and files that are kept; the oldest is forgotten for the next."""


@dataclass(frozen=True, slots=True)
class MissingFirmware:
    """A file that a driver wanted for a device."""

    name: str
    """Relative to the firmware directories: `rtl_nic/rtl8168g-2.fw`."""
    subsystem: str
    device: str
    """As in KernelLine: `+pci:0000:01:00.0`."""


def missing_firmware(line: KernelLine) -> MissingFirmware | None:
    """What `line` says is missing; None for any other line, and for one that a process wrote."""
    if line.facility:
        return None
    for form in _SAID:
        if match := re.fullmatch(form, line.text):
            return MissingFirmware(match[1], line.subsystem, line.device)
    return None


def probe_path(missing: MissingFirmware) -> tuple[str, str] | None:
    """The file that has the kernel look for a driver again, and what to write into it; None where there is none.

    For `+BUS:NAME` alone (kernel Documentation/ABI/testing/sysfs-bus); where the subsystem is a class, there is no such
    file. Writing it waits for the probe, and does nothing to a device that has a driver.
    """
    kind, device = missing.device[:1], missing.device[1:]
    bus, colon, name = device.partition(":")
    if kind != "+" or not colon or not name or not re.fullmatch(r"[\w-]+", bus):
        return None
    return f"/sys/bus/{bus}/drivers_probe", name


class FirmwareWaits:
    """Who waits for which file. Bounded: MAX_WAITING."""

    def __init__(self) -> None:
        self._waits: dict[MissingFirmware, None] = {}

    def add(self, missing: MissingFirmware) -> bool:
        """Keep it. The answer: whether it is new."""
        if missing in self._waits:
            return False
        while len(self._waits) >= MAX_WAITING:
            del self._waits[next(iter(self._waits))]
        self._waits[missing] = None
        return True

    def came(self, present: Callable[[str], bool]) -> list[MissingFirmware]:
        """Those whose file is there now, in the order they came; they are forgotten."""
        there = {name for name in self.names if present(name)}
        found = [missing for missing in self._waits if missing.name in there]
        for missing in found:
            del self._waits[missing]
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """The files that are waited for, each once."""
        return tuple(dict.fromkeys(missing.name for missing in self._waits))
