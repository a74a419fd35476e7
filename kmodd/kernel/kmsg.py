"""Parse records of /dev/kmsg into `KernelLine`, and find the lines of a kernel crash."""

from __future__ import annotations

from kmodd.dataclass import dataclass
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_NUMBERS = (4, 20, 20)
"""Most digits of the numbers at the beginning of a record: facility and priority, sequence, time."""

MAX_CRASH_LINES = 40

_CRASH_LEVEL = 4
"""Least urgent priority of the lines of a crash: warning, the kernel's default."""
_ALERT = ("BUG: ", "kernel BUG at ", "Unable to handle kernel ", "Internal error: ")
_ALERT_LEVEL = 2
"""Least urgent priority of _ALERT: critical. Warnings may begin with a name that a process gives itself."""
_NUMBERED = r"[^\[\]]*\[#\d+\](?: [A-Z][A-Z0-9_]*)*"
"""A line of die(): `Oops: 0002 [#1] PREEMPT SMP`. The number counts the crashes since boot, on all architectures
(arch/*/kernel/traps.c, others). Nothing follows but words of the configuration."""
_CRASH_ENDS = "---[ end trace"


@dataclass(frozen=True, slots=True)
class KernelLine:
    """A record of the kernel log."""

    priority: int
    """syslog(3) level, 0 to 7."""
    sequence: int
    usec: int
    """µs of the monotonic clock."""
    text: str
    """One line, as escaped by the kernel: bytes other than printable ASCII are `\\xNN`, so it is safe for terminals."""
    subsystem: str = ""
    """Subsystem of the device that the record concerns: `pci`."""
    device: str = ""
    """`b8:0`, `c1:2`, `n3` (block, character, network) or `+pci:0000:01:00.0` (subsystem and name)."""
    facility: int = 0
    """0: the kernel. Records that processes write to /dev/kmsg always have another facility."""


def parse(record: bytes) -> KernelLine | None:
    """Parse a record of /dev/kmsg. Return None if it has another format."""
    head, semicolon, rest = record.partition(b";")
    numbers = head.split(b",", 3)
    text, _, below = rest.partition(b"\n")
    lines = below.removesuffix(b"\n").split(b"\n") if below else []
    if not semicolon or b"\n" in head or len(numbers) < 4 or not all(line.startswith(b" ") for line in lines):
        return None
    if not all(each.isdigit() and len(each) <= most for each, most in zip(numbers, _NUMBERS, strict=False)):
        return None
    fields = dict.fromkeys((b"SUBSYSTEM", b"DEVICE"), b"")
    for line in lines:
        key, _, value = line[1:].partition(b"=")
        if key in fields:
            fields[key] = value
    facility, priority = divmod(int(numbers[0]), 8)
    subsystem, device = (decode(value) for value in fields.values())
    return KernelLine(priority, int(numbers[1]), int(numbers[2]), decode(text), subsystem, device, facility)


def crash_lines(lines: Iterable[KernelLine]) -> tuple[str, ...]:
    """Return the texts of the latest oops in `lines`, MAX_CRASH_LINES at most; none if there is no oops.

    The first line names the cause: `BUG: kernel NULL pointer dereference, address: …`. Lines about a device are none of
    an oops, nor informational ones: both may contain what a device or a process calls itself.
    """
    import re  # only here: boot must not wait for it

    crash: list[str] = []
    is_open = False
    for line in lines:
        if line.facility or line.device or line.subsystem or line.priority > _CRASH_LEVEL:
            continue
        is_open = is_open and len(crash) < MAX_CRASH_LINES
        is_alert = line.priority <= _ALERT_LEVEL and line.text.startswith(_ALERT)
        if is_alert or (not is_open and re.fullmatch(_NUMBERED, line.text)):
            crash, is_open = [], True
        if is_open:
            crash.append(line.text)
            is_open = not line.text.startswith(_CRASH_ENDS)
    return tuple(crash)
