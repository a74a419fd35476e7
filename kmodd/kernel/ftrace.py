"""Parse binary pages of the kernel's trace, as read from tracefs' `per_cpu/cpuN/trace_pipe_raw`.

The text form is not trustworthy: a name with a line end can forge lines in it. In the binary form, thread and name are
fields with lengths. A read returns one page of the ring buffer: a header (time stamp, length, flags) and events, each
with the time since the previous one (include/linux/ring_buffer.h, kernel/trace/ring_buffer.c; `events/header_page` has
the sizes). The `format` file of an event describes its fields.
"""

from __future__ import annotations

import re

from kmodd.dataclass import dataclass
from kmodd.errors import ParseError
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Literal

    ByteOrder = Literal["little", "big"]
else:
    ByteOrder = str

_MISSED: Final = 1 << 31
"""RB_MISSED_EVENTS in the header's length: events before this page were overwritten."""
_LENGTH: Final = (1 << 27) - 1
"""Mask of the length in the header, as used by trace-cmd and perfetto."""
_DELTA_BITS: Final = 27
_PADDING, _TIME_EXTEND, _TIME_STAMP = 29, 30, 31
"""enum ring_buffer_type; 1 to 28 is the event's length in 4-byte words, 0: a word with the length in bytes follows."""
_STAMP_BITS: Final = 59
"""Bits of an absolute time stamp; the higher bits are those of the previous one (rb_fix_abs_ts)."""

_FIELD: Final = re.compile(r"^\s*field:(?P<what>[^;]+);\s*offset:(?P<offset>\d+);\s*size:(?P<size>\d+);", re.MULTILINE)
_DATA_LOC: Final = re.compile(r"field:\s*__data_loc char\[\]\s+name;")
_ID: Final = re.compile(r"^ID:\s*(\d+)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Field:
    """Offset and size of a field in a header or event, in bytes."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class PageLayout:
    """Layout of a trace page on this machine."""

    order: ByteOrder
    stamp: Field
    length: Field
    """`commit`: length of the events in bytes, and flags."""
    data: Field

    @property
    def size(self) -> int:
        """Size of a page in bytes, which is the length to read."""
        return self.data.offset + self.data.size


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """An event of a trace page."""

    timestamp_ns: int
    """Nanoseconds of the trace clock."""
    data: bytes
    """Fields as its `format` describes; may end in padding."""


@dataclass(frozen=True, slots=True)
class TracePage:
    """The events of one page."""

    events: tuple[TraceEvent, ...]
    missed: bool
    """Earlier events were overwritten before they were read."""
    damaged: bool
    """The rest of the page after these events is invalid."""


@dataclass(frozen=True, slots=True)
class RequestFormat:
    """Layout of a `module_request` event."""

    order: ByteOrder
    event_id: int
    kind: Field
    tid: Field
    wait: Field
    name: Field
    """A 4-byte word: offset of the text in the lower half, length including NUL in the upper half (__data_loc)."""

    @property
    def least(self) -> int:
        """Size of an event in bytes without the text of the name."""
        return max(field.offset + field.size for field in (self.kind, self.tid, self.wait, self.name))


@dataclass(frozen=True, slots=True)
class ExecFormat:
    """Layout of a `sched_process_exec` event."""

    order: ByteOrder
    event_id: int
    kind: Field
    tid: Field


@dataclass(frozen=True, slots=True)
class ModuleRequested:
    """A call of request_module() in the kernel."""

    timestamp_ns: int
    """Nanoseconds of the trace clock."""
    tid: int
    """ID of the calling thread in the initial PID namespace."""
    name: str
    """The name that the helper receives, with surrogate escapes."""
    wait: bool
    """The thread waits for the helper; False: request_module_nowait(), the thread continues."""


def parse_header_page(text: str, order: ByteOrder) -> PageLayout:
    """Parse tracefs' `events/header_page`. order: byte order of the machine. Raises ParseError."""
    stamp, length, data = _fields(text, ("timestamp", "commit", "data"), "header_page")
    if stamp.size != 8 or length.size not in (4, 8) or max(stamp.offset + 8, length.offset + length.size) > data.offset:
        raise ParseError("header_page: expected a timestamp of 8 bytes and a commit of 4 or 8, then data")
    return PageLayout(order, stamp, length, data)


def parse_request_format(text: str, order: ByteOrder) -> RequestFormat:
    """Parse tracefs' `events/module/module_request/format` (include/trace/events/module.h). Raises ParseError."""
    file = "module_request/format"
    kind, tid, wait, name = _fields(text, ("common_type", "common_pid", "wait", "name"), file)
    if tid.size != 4 or name.size != 4 or not _DATA_LOC.search(text):
        raise ParseError(f"{file}: expected a common_pid of 4 bytes and `__data_loc char[] name`")
    return RequestFormat(order, _event_id(text, file), kind, tid, wait, name)


def parse_exec_format(text: str, order: ByteOrder) -> ExecFormat:
    """Parse tracefs' `events/sched/sched_process_exec/format` (include/trace/events/sched.h). Raises ParseError."""
    file = "sched_process_exec/format"
    kind, tid = _fields(text, ("common_type", "common_pid"), file)
    return ExecFormat(order, _event_id(text, file), kind, tid)


def page_start(page: bytes, layout: PageLayout) -> tuple[int, bool]:
    """Return the time of the first event of a page in ns, and whether events before it were overwritten."""
    stamp, commit = (_number(page, field, layout.order) for field in (layout.stamp, layout.length))
    return stamp, bool(commit & _MISSED)


def parse_page(page: bytes, layout: PageLayout) -> TracePage:
    """Parse a page. Raises nothing: parsing ends at the first invalid event, and the result is marked as damaged."""
    if len(page) < layout.data.offset:
        return TracePage((), missed=False, damaged=True)
    now = _number(page, layout.stamp, layout.order)
    commit = _number(page, layout.length, layout.order)
    at, end = layout.data.offset, layout.data.offset + (commit & _LENGTH)
    missed = bool(commit & _MISSED)
    if end > len(page):
        return TracePage((), missed, damaged=True)
    events: list[TraceEvent] = []
    while at + 4 <= end:
        kind, delta, word = _head(page, at, layout.order)
        if kind == _PADDING and delta == 0:
            at = end  # the rest of the page is empty
            break
        # A length in bytes includes its own word, so less than 4 is invalid.
        size = word if kind in (0, _PADDING) else 4 if kind > _PADDING else 4 * kind
        after = at + 4 + size
        if size < 4 or after > end:
            break
        if kind == _TIME_EXTEND:
            now += (word << _DELTA_BITS) + delta
        elif kind == _TIME_STAMP:
            now = (now >> _STAMP_BITS << _STAMP_BITS) | (word << _DELTA_BITS) + delta
        elif kind != _PADDING:  # padding is a discarded event, whose time is not added either (rb_update_read_stamp)
            now += delta
            events.append(TraceEvent(now, page[at + 4 if kind else at + 8 : after]))
        at = after
    return TracePage(tuple(events), missed, damaged=at != end)


def module_requested(event: TraceEvent, layout: RequestFormat) -> ModuleRequested | None:
    """Return the module request of an event, or None if it is another event or shorter than its fields."""
    data, order = event.data, layout.order
    if len(data) < layout.least or _number(data, layout.kind, order) != layout.event_id:
        return None
    place = _number(data, layout.name, order)
    start, length = place & 0xFFFF, place >> 16
    text = data[start : start + length]
    if len(text) != length or not text.endswith(b"\0"):
        return None
    name = decode(text.partition(b"\0")[0])
    tid, wait = _number(data, layout.tid, order), _number(data, layout.wait, order)
    return ModuleRequested(event.timestamp_ns, tid, name, bool(wait))


def executed(event: TraceEvent, layout: ExecFormat) -> int | None:
    """Return the ID of the thread that has executed a program: that of its process, also if another thread did.

    None for another event.
    """
    if _number(event.data, layout.kind, layout.order) != layout.event_id:
        return None
    return _number(event.data, layout.tid, layout.order)


def _event_id(text: str, file: str) -> int:
    """Return the number in a `format` file. file: name for errors. Raises ParseError."""
    number = _ID.search(text)
    if number is None:
        raise ParseError(f"{file}: expected a line `ID: N`")
    return int(number[1])


def _head(page: bytes, at: int, order: ByteOrder) -> tuple[int, int, int]:
    """Return kind and time delta (ns) of the event at `at`, and the word after its head (0 at the end of the page)."""
    head = int.from_bytes(page[at : at + 4], order)
    word = int.from_bytes(page[at + 4 : at + 8], order)
    # The kind is the first bit field: the lower five bits on little-endian machines, the upper five on big-endian ones.
    if order == "little":
        return head & 31, head >> 5, word
    return head >> _DELTA_BITS, head & (1 << _DELTA_BITS) - 1, word


def _number(data: bytes, field: Field, order: ByteOrder) -> int:
    return int.from_bytes(data[field.offset : field.offset + field.size], order)


def _fields(text: str, names: tuple[str, ...], file: str) -> tuple[Field, ...]:
    """Return the fields with these names, in this order. file: name for errors. Raises ParseError for missing ones."""
    found = {}
    for match in _FIELD.finditer(text):
        name = match["what"].split()[-1]
        found[name.partition("[")[0]] = Field(int(match["offset"]), int(match["size"]))
    missing = [name for name in names if name not in found]
    if missing:
        raise ParseError(f"{file}: expected `field: TYPE NAME; offset: N; size: N;` for {', '.join(missing)}")
    return tuple(found[name] for name in names)
