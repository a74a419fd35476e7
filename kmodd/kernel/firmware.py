"""Detect missing firmware files in the kernel log, and remember the devices until the files are present.

A driver requests its firmware in its probe function. If the file is missing, the probe fails, and the kernel does not
retry it. Only the log has the name of the file (drivers/base/firmware_loader/main.c).
"""

from __future__ import annotations

from kmodd.dataclass import dataclass
from kmodd.kernel.kmsg import KernelLine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_MESSAGES = (("Direct firmware load for ", " failed with error -2"), ("firmware: failed to load ", " (-2)"))
"""Beginning and end of messages with -ENOENT; a new file resolves no other error. The second is Debian's, sometimes
printed in addition to the first, and also for files that are optional for the driver."""

WORD = b"firmware"
"""Part of every log record with one of these messages."""

MAX_WAITING = 256
"""Maximum number of remembered pairs of device and file; the oldest is dropped first."""


@dataclass(frozen=True, slots=True)
class MissingFirmware:
    """A missing firmware file, and the device whose driver requested it."""

    name: str
    """Path relative to the firmware directories: `rtl_nic/rtl8168g-2.fw`."""
    subsystem: str
    device: str
    """As in KernelLine: `+pci:0000:01:00.0`."""


def missing_firmware(line: KernelLine) -> MissingFirmware | None:
    """Return the missing firmware that `line` reports, or None for another line or one written by a process.

    The message follows `DRIVER DEVICE: `, with the device of the record (drivers/base/core.c, __dev_printk). What a
    device calls itself comes later in a line.
    """
    if line.facility or not line.device.startswith("+"):
        return None
    message = line.text.partition(f" {line.device.partition(':')[2]}: ")[2]
    for begin, end in _MESSAGES:
        if message.startswith(begin) and message.endswith(end) and len(message) > len(begin) + len(end):
            return MissingFirmware(message[len(begin) : -len(end)], line.subsystem, line.device)
    return None


def probe_path(missing: MissingFirmware) -> tuple[str, str] | None:
    """Return the sysfs file that makes the kernel probe the device again and the text to write, or None.

    Only a device of a bus, `+BUS:NAME`, has the file (kernel Documentation/ABI/testing/sysfs-bus), not one of a class.
    The write blocks until the probe ends, and has no effect on a device with a driver.
    """
    import re  # only here: boot must not wait for it

    kind, device = missing.device[:1], missing.device[1:]
    bus, colon, name = device.partition(":")
    if kind != "+" or not colon or not name or not re.fullmatch(r"[\w-]+", bus):
        return None
    return f"/sys/bus/{bus}/drivers_probe", name


class FirmwareWaits:
    """The devices that wait for a firmware file, MAX_WAITING at most."""

    def __init__(self) -> None:
        self._waits: dict[MissingFirmware, None] = {}

    def add(self, missing: MissingFirmware) -> bool:
        """Remember `missing`. Return whether it is new."""
        if missing in self._waits:
            return False
        while len(self._waits) >= MAX_WAITING:
            del self._waits[next(iter(self._waits))]
        self._waits[missing] = None
        return True

    def came(self, present: Callable[[str], bool]) -> list[MissingFirmware]:
        """Remove and return the entries whose file is present now, oldest first.

        present: checks whether a file with this name exists; called once for each name.
        """
        available = {name for name in self.names if present(name)}
        found = [missing for missing in self._waits if missing.name in available]
        for missing in found:
            del self._waits[missing]
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the missing files, each once."""
        return tuple(dict.fromkeys(missing.name for missing in self._waits))
