"""One record of the kernel's log: bytes of /dev/kmsg in, `KernelLine` out; and the lines that tell of a crash."""

from __future__ import annotations

import re

from kmodd.dataclass import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_RECORD = rb"(\d{1,4}),(\d{1,20}),(\d{1,20}),[^;\n]*;([^\n]*)\n?((?: [^\n]*\n?)*)"
"""`6,1234,5678,-;TEXT`, then fields, each on a line with a blank before it (Documentation/ABI/testing/dev-kmsg)."""

MAX_CRASH_LINES = 40

_NEW_CRASH = ("BUG: ", "kernel BUG at ", "Unable to handle kernel ", "general protection fault")
_CRASH = r"Oops\b|Internal error: |(?:divide error|invalid opcode|stack segment|double fault)\b|.*\[#\d+\]"
"""How die() begins; `[#N]` counts the crashes of this boot, on any architecture (arch/*/kernel/traps.c and others)."""
_CRASH_ENDS = "---[ end trace"


@dataclass(frozen=True, slots=True)
class KernelLine:
    """One record."""

    priority: int
    """syslog(3) level, 0 to 7."""
    sequence: int
    usec: int
    """Of the monotonic clock, since boot."""
    text: str
    """As the kernel gives it: what is not printable ASCII is `\\xNN`, so it is one line and does a terminal no harm."""
    subsystem: str = ""
    """Of the device that it is about: `pci`."""
    device: str = ""
    """`b8:0`, `c1:2`, `n3` (block, character, network) or `+pci:0000:01:00.0` (subsystem and name)."""
    facility: int = 0
    """0: the kernel itself. What a process writes to /dev/kmsg always has another."""


def parse(record: bytes) -> KernelLine | None:
    """Read one record; None where it has another form."""
    match = re.fullmatch(_RECORD, record)
    if not match:
        return None
    fields = dict.fromkeys((b"SUBSYSTEM", b"DEVICE"), b"")
    for line in match[5].splitlines():
        key, _, value = line[1:].partition(b"=")
        if key in fields:
            fields[key] = value
    facility, priority = divmod(int(match[1]), 8)
    subsystem, device = (_text(value) for value in fields.values())
    return KernelLine(priority, int(match[2]), int(match[3]), _text(match[4]), subsystem, device, facility)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def crash_lines(lines: Iterable[str]) -> tuple[str, ...]:
    """Of the log's last lines those of the latest oops, at most MAX_CRASH_LINES; empty where there is none.

    The first is the most telling one: `BUG: kernel NULL pointer dereference, address: …`.
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
