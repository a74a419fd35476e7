"""Parse records of /dev/kmsg into `KernelLine`, and find the lines of a kernel crash."""

from __future__ import annotations

import re

from kmodd.dataclass import dataclass
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_RECORD = rb"(\d{1,4}),(\d{1,20}),(\d{1,20}),[^;\n]*;([^\n]*)\n?((?: [^\n]*\n?)*)"
"""`6,1234,5678,-;TEXT`, then a line ` KEY=VALUE` for each field (Documentation/ABI/testing/dev-kmsg)."""

MAX_CRASH_LINES = 40

_NEW_CRASH = ("BUG: ", "kernel BUG at ", "Unable to handle kernel ", "general protection fault")
_CRASH = r"Oops\b|Internal error: |(?:divide error|invalid opcode|stack segment|double fault)\b|.*\[#\d+\]"
"""First lines of die(); `[#N]` counts the crashes since boot, on all architectures (arch/*/kernel/traps.c, others)."""
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
    match = re.fullmatch(_RECORD, record)
    if not match:
        return None
    fields = dict.fromkeys((b"SUBSYSTEM", b"DEVICE"), b"")
    for line in match[5].splitlines():
        key, _, value = line[1:].partition(b"=")
        if key in fields:
            fields[key] = value
    facility, priority = divmod(int(match[1]), 8)
    subsystem, device = (decode(value) for value in fields.values())
    return KernelLine(priority, int(match[2]), int(match[3]), decode(match[4]), subsystem, device, facility)


def crash_lines(lines: Iterable[str]) -> tuple[str, ...]:
    """Return the lines of the latest oops in `lines`, MAX_CRASH_LINES at most; none if there is no oops.

    The first line names the cause: `BUG: kernel NULL pointer dereference, address: …`.
    """
    crash: list[str] = []
    is_open = False
    for line in lines:
        is_open = is_open and len(crash) < MAX_CRASH_LINES
        if line.startswith(_NEW_CRASH) or (not is_open and re.match(_CRASH, line)):
            crash, is_open = [], True
        if is_open:
            crash.append(line)
            is_open = not line.startswith(_CRASH_ENDS)
    return tuple(crash)
