"""The kernel's trace in its binary form: what a read of tracefs' `per_cpu/cpuN/trace_pipe_raw` gives.

The text form cannot be believed: a name with a line end in it writes lines of its own there. Here the thread and the
name are fields with lengths. A read gives one page of the ring buffer: a header (time stamp, length and flags) and
events, each with its distance in time from the one before (include/linux/ring_buffer.h, kernel/trace/ring_buffer.c; the
sizes are those of `events/header_page`). What an event means, its `format` file says.
"""

from __future__ import annotations

import re

from kmodd.dataclass import dataclass
from kmodd.errors import ParseError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Literal

    ByteOrder = Literal["little", "big"]
else:
    ByteOrder = str

_MISSED: Final = 1 << 31
"""RB_MISSED_EVENTS in the header's length: events before this page were overwritten."""
_LENGTH: Final = (1 << 27) - 1
"""The length without flags, as trace-cmd and perfetto take it too."""
_DELTA_BITS: Final = 27
_PADDING, _TIME_EXTEND, _TIME_STAMP = 29, 30, 31
"""enum ring_buffer_type; 1 to 28 is the event's length in words, 0: a word with the length follows."""
_STAMP_BITS: Final = 59
"""An absolute time stamp has no room for more; the bits above stay as they were (rb_fix_abs_ts)."""

_FIELD: Final = re.compile(r"^\s*field:(?P<what>[^;]+);\s*offset:(?P<offset>\d+);\s*size:(?P<size>\d+);", re.MULTILINE)
_DATA_LOC: Final = re.compile(r"field:\s*__data_loc char\[\]\s+name;")
_ID: Final = re.compile(r"^ID:\s*(\d+)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Field:
    """A place in a header or an event, in bytes."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class PageLayout:
    """How a page is laid out on this machine."""

    order: ByteOrder
    stamp: Field
    length: Field
    """`commit`: the bytes of events, and flags."""
    data: Field

    @property
    def size(self) -> int:
        """Bytes of a whole page, which is what to ask a read for."""
        return self.data.offset + self.data.size


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """One event."""

    timestamp_ns: int
    """By the trace's clock."""
    data: bytes
    """As its `format` describes; may have some bytes of padding at its end."""


@dataclass(frozen=True, slots=True)
class TracePage:
    """What one read gave."""

    events: tuple[TraceEvent, ...]
    missed: bool
    """Events before these were overwritten, unread."""
    damaged: bool
    """What stands behind these could not be read."""


@dataclass(frozen=True, slots=True)
class RequestFormat:
    """Where a `module_request` event has its fields."""

    order: ByteOrder
    event_id: int
    kind: Field
    tid: Field
    wait: Field
    name: Field
    """A word: offset of the text in its lower half, length with its NUL in the upper one (__data_loc)."""

    @property
    def least(self) -> int:
        """Bytes of an event without the name's text."""
        return max(field.offset + field.size for field in (self.kind, self.tid, self.wait, self.name))


@dataclass(frozen=True, slots=True)
class ModuleRequested:
    """Some thread called request_module() and, with `wait`, waits for its end."""

    timestamp_ns: int
    tid: int
    """Of the thread, in the initial pid namespace."""
    name: str
    """As the helper gets it, with surrogate escapes."""
    wait: bool
    """False: request_module_nowait(); whoever asked has gone on."""


def parse_header_page(text: str, order: ByteOrder) -> PageLayout:
    """Read tracefs' `events/header_page`; `order` is the machine's. Raises ParseError."""
    stamp, length, data = _fields(text, ("timestamp", "commit", "data"), "header_page")
    if stamp.size != 8 or length.size not in (4, 8) or max(stamp.offset + 8, length.offset + length.size) > data.offset:
        raise ParseError("header_page: expected a timestamp of 8 bytes and a commit of 4 or 8, then data")
    return PageLayout(order, stamp, length, data)


def parse_request_format(text: str, order: ByteOrder) -> RequestFormat:
    """Read tracefs' `events/module/module_request/format` (include/trace/events/module.h). Raises ParseError."""
    file = "module_request/format"
    number = _ID.search(text)
    if number is None:
        raise ParseError(f"{file}: expected a line `ID: N`")
    kind, tid, wait, name = _fields(text, ("common_type", "common_pid", "wait", "name"), file)
    if tid.size != 4 or name.size != 4 or not _DATA_LOC.search(text):
        raise ParseError(f"{file}: expected a common_pid of 4 bytes and `__data_loc char[] name`")
    return RequestFormat(order, int(number[1]), kind, tid, wait, name)


def parse_page(page: bytes, layout: PageLayout) -> TracePage:
    """Take a page apart. Never raises: behind a damage nothing can be told, and the page says that it is damaged."""
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
            at = end  # nothing more on this page
            break
        # A length counts its own word, so less than 4 is none.
        size = word if kind in (0, _PADDING) else 4 if kind > _PADDING else 4 * kind
        after = at + 4 + size
        if size < 4 or after > end:
            break
        if kind == _TIME_EXTEND:
            now += (word << _DELTA_BITS) + delta
        elif kind == _TIME_STAMP:
            now = (now >> _STAMP_BITS << _STAMP_BITS) | (word << _DELTA_BITS) + delta
        elif kind != _PADDING:  # that is a discarded event, whose time does not count either (rb_update_read_stamp)
            now += delta
            events.append(TraceEvent(now, page[at + 4 if kind else at + 8 : after]))
        at = after
    return TracePage(tuple(events), missed, damaged=at != end)


def module_requested(event: TraceEvent, layout: RequestFormat) -> ModuleRequested | None:
    """What the event says; None: it is of another kind, or too short for what it says of itself."""
    data, order = event.data, layout.order
    if len(data) < layout.least or _number(data, layout.kind, order) != layout.event_id:
        return None
    place = _number(data, layout.name, order)
    start, length = place & 0xFFFF, place >> 16
    text = data[start : start + length]
    if len(text) != length or not text.endswith(b"\0"):
        return None
    name = text.partition(b"\0")[0].decode("utf-8", "surrogateescape")
    tid, wait = _number(data, layout.tid, order), _number(data, layout.wait, order)
    return ModuleRequested(event.timestamp_ns, tid, name, bool(wait))


def _head(page: bytes, at: int, order: ByteOrder) -> tuple[int, int, int]:
    """Kind and time of the event that starts at `at`, and the word after it (0 where the page ends before)."""
    head = int.from_bytes(page[at : at + 4], order)
    word = int.from_bytes(page[at + 4 : at + 8], order)
    # Bit fields: the kind is the lower five bits, or the upper five where the first bit is the highest.
    if order == "little":
        return head & 31, head >> 5, word
    return head >> _DELTA_BITS, head & (1 << _DELTA_BITS) - 1, word


def _number(data: bytes, field: Field, order: ByteOrder) -> int:
    return int.from_bytes(data[field.offset : field.offset + field.size], order)


def _fields(text: str, names: tuple[str, ...], file: str) -> tuple[Field, ...]:
    """The fields of these names, in this order."""
    found = {}
    for match in _FIELD.finditer(text):
        name = match["what"].split()[-1]
        found[name.partition("[")[0]] = Field(int(match["offset"]), int(match["size"]))
    missing = [name for name in names if name not in found]
    if missing:
        raise ParseError(f"{file}: expected `field: TYPE NAME; offset: N; size: N;` for {', '.join(missing)}")
    return tuple(found[name] for name in names)
