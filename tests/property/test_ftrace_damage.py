"""Pages of the kernel's trace: written pages are read, and any damage gives an answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.kernel.ftrace import (
    ByteOrder,
    TraceEvent,
    TracePage,
    module_requested,
    parse_header_page,
    parse_page,
    parse_request_format,
)
from tests.pages import FORMAT, HEADER_PAGE, page, request_event, written

pytestmark = pytest.mark.property

ORDERS: list[ByteOrder] = ["little", "big"]
LAYOUTS = {order: parse_header_page(HEADER_PAGE, order) for order in ORDERS}
FORMATS = {order: parse_request_format(FORMAT, order) for order in ORDERS}
EVENTS = [
    TraceEvent(1000, request_event(4711, b"net-pf-9")),
    TraceEvent(1000 + (3 << 27), request_event(4712, b"fs-x\nsh-1", wait=False)),
    TraceEvent(1001 + (3 << 27), request_event(4713, b"y" * 150)),
]
data = st.integers(1, 60).flatmap(lambda words: st.binary(min_size=4 * words, max_size=4 * words))
gaps = st.lists(st.tuples(st.integers(0, 2**50), data), max_size=12)


@given(st.sampled_from(ORDERS), st.integers(0, 2**59), gaps)
def test_what_is_written_is_read(order: ByteOrder, stamp: int, gaps: list[tuple[int, bytes]]) -> None:
    now, expected = stamp, []
    for gap, content in gaps:
        now += gap
        expected.append(TraceEvent(now, content))
    read = page(stamp, written(stamp, expected, order), order=order)
    assert parse_page(read, LAYOUTS[order]) == TracePage(tuple(expected), False, False)


@given(st.sampled_from(ORDERS), st.binary(max_size=400), st.integers(0, 2**64 - 1))
def test_any_bytes_are_a_page(order: ByteOrder, body: bytes, length: int) -> None:
    for read in (body, page(1000, body, order=order), page(1000, body, order=order, length=length)):
        look_at(read, order)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 4096))
def test_damaged_requests_are_answers(changes: list[tuple[int, int]], cut: int) -> None:
    """Events before the first damaged byte are read."""
    whole = page(900, written(900, EVENTS))
    damaged = bytearray(whole)
    for at, byte in changes:
        damaged[at] = byte
    look_at(bytes(damaged), "little")
    look_at(bytes(damaged[:cut]), "little")
    first = next((at for at, (one, other) in enumerate(zip(whole, damaged, strict=True)) if one != other), len(whole))
    ends = [16 + len(written(900, EVENTS[:count])) for count in range(len(EVENTS) + 1)]
    sound = sum(end <= first for end in ends) - 1
    if sound > 0:
        assert list(parse_page(bytes(damaged), LAYOUTS["little"]).events[:sound]) == EVENTS[:sound]


def look_at(read: bytes, order: ByteOrder) -> None:
    """Nothing is raised, and no event holds more than the page has."""
    found = parse_page(read, LAYOUTS[order])
    assert sum(len(event.data) for event in found.events) <= max(0, len(read) - 16)
    for event in found.events:
        request = module_requested(event, FORMATS[order])
        assert request is None or len(request.name.encode("utf-8", "surrogateescape")) < len(event.data)
