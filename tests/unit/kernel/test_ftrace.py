"""Pages of the kernel's trace: each kind of event (include/linux/ring_buffer.h), recorded ones, and damaged ones."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest

from kmodd.errors import ParseError
from kmodd.kernel.ftrace import (
    ByteOrder,
    ModuleRequested,
    TraceEvent,
    TracePage,
    module_requested,
    parse_header_page,
    parse_page,
    parse_request_format,
)
from tests.pages import (
    FORMAT,
    HEADER_PAGE,
    MISSED,
    PADDING,
    STORED,
    TIME_EXTEND,
    TIME_STAMP,
    head,
    page,
    request_event,
    word,
    written,
)

FIXTURE = json.loads((Path(__file__).parents[3] / "fixtures/trace/requests.json").read_text())
LITTLE = parse_header_page(HEADER_PAGE, "little")
BIG = parse_header_page(HEADER_PAGE, "big")
ORDERS: list[ByteOrder] = ["little", "big"]


def test_layout() -> None:
    assert LITTLE.size == 4096
    with pytest.raises(ParseError, match="commit"):
        parse_header_page(HEADER_PAGE.replace("commit", "length"), "little")
    with pytest.raises(ParseError, match="8 bytes"):
        parse_header_page(HEADER_PAGE.replace("offset:8;\tsize:8", "offset:12;\tsize:8"), "little")


def test_format() -> None:
    layout = parse_request_format(FORMAT, "little")
    assert (layout.event_id, layout.tid.offset, layout.wait.offset, layout.name.offset) == (443, 4, 16, 20)
    for bad in (
        FORMAT.replace("ID:", "Id:"),
        FORMAT.replace("common_pid", "pid"),
        FORMAT.replace("__data_loc", "__rel_loc"),
        FORMAT.replace("offset:4;\tsize:4", "offset:4;\tsize:8"),
        "",
    ):
        with pytest.raises(ParseError, match="module_request/format: expected"):
            parse_request_format(bad, "little")


@pytest.mark.parametrize("order", ORDERS)
def test_events_of_all_sizes(order: ByteOrder) -> None:
    events = (
        TraceEvent(1000, b"abcd"),
        TraceEvent(1000, b"x" * 112),
        TraceEvent(1007, b"y" * 200),
        TraceEvent(1007 + (5 << 27) + 3, b"z" * 116),
    )
    layout = LITTLE if order == "little" else BIG
    assert parse_page(page(900, written(900, events, order), order=order), layout) == TracePage(events, False, False)


def test_an_invalid_event_is_an_error() -> None:
    body = (
        head(TIME_STAMP, 5) + word(1)  # absolute: 2**27 + 5, the five highest bits stay
        + head(PADDING, 1) + word(8) + b"gone"  # discarded
        + head(1, 2) + b"data"
        + head(PADDING, 0) + b"\xff" * 40
    )  # fmt: skip
    high = 3 << 60
    expected = TraceEvent(high + (1 << 27) + 7, b"data")
    assert parse_page(page(high + 77, body), LITTLE) == TracePage((expected,), False, False)


def test_an_empty_page() -> None:
    assert parse_page(page(900, b""), LITTLE) == TracePage((), False, False)


@pytest.mark.parametrize("flags", [MISSED, MISSED | STORED])
def test_missed_events(flags: int) -> None:
    read = page(900, head(1, 2) + b"data", flags)
    assert parse_page(read, LITTLE) == TracePage((TraceEvent(902, b"data"),), True, False)


@pytest.mark.parametrize(
    "rest",
    [
        head(2, 2) + b"data",  # longer than the page's content
        head(0, 2) + word(3) + b"data",  # a length that does not even count itself
        head(0, 2) + word(2**32 - 1) + b"data",
        head(PADDING, 1) + word(0),
        head(TIME_EXTEND, 1),
        head(0, 2),
        b"\x01",
    ],
)
def test_damage_keeps_what_stands_before_it(rest: bytes) -> None:
    read = parse_page(page(900, head(1, 2) + b"data" + rest), LITTLE)
    assert read == TracePage((TraceEvent(902, b"data"),), False, True)


@pytest.mark.parametrize("read", [b"", b"\0" * 15, page(900, b"", length=4081), page(900, b"", length=1 << 26)])
def test_no_page_at_all(read: bytes) -> None:
    assert parse_page(read, LITTLE) == TracePage((), False, True)


@pytest.mark.parametrize("order", ORDERS)
def test_requests(order: ByteOrder) -> None:
    layout = parse_request_format(FORMAT, order)

    def said(data: bytes) -> ModuleRequested | None:
        return module_requested(TraceEvent(5, data), layout)

    name = b"fs-x\nsh-1 [0] 1: module_request: evil\xff"
    expected = ModuleRequested(5, 4711, name.decode("utf-8", "surrogateescape"), True)
    assert said(request_event(4711, name, order=order)) == expected
    assert said(request_event(1, b"", wait=False, order=order)) == ModuleRequested(5, 1, "", False)
    assert said(request_event(1, b"x", kind=442, order=order)) is None
    whole = request_event(1, b"abc", order=order)
    assert [said(whole[:end]) is None for end in range(len(whole) + 1)] == [True] * len(whole) + [False]


def recorded(key: str) -> tuple[list[TracePage], list[ModuleRequested]]:
    """A real kernel's pages and the requests in them."""
    layout = parse_header_page(FIXTURE["header_page"], "little")
    form = parse_request_format(FIXTURE["format"], "little")
    # What was cut off at the end are zeros, which a real page is filled up with.
    read = [parse_page(base64.b64decode(page).ljust(layout.size, b"\0"), layout) for page in FIXTURE[key]]
    requests = [module_requested(event, form) for page in read for event in page.events]
    return read, [request for request in requests if request is not None]


def test_recorded_requests() -> None:
    """The kernel's text of the same requests is equal, but for a name that forges a line there."""
    read, requests = recorded("pages")
    assert [(page.missed, page.damaged) for page in read] == [(False, False)]
    told = re.findall(r"^ +\S+-(\d+) +\[000\] \S+ +(\d+)\.(\d+): module_request: ", FIXTURE["text"], re.MULTILINE)
    assert [(one.tid, (one.timestamp_ns + 500) // 1000) for one in requests] == [
        (int(tid), int(seconds) * 10**6 + int(micros)) for tid, seconds, micros in told
    ]
    forged = "fs-x\nsh-1 [000] d 1: module_request: evil"
    assert [one.name for one in requests] == ["net-pf-9", "net-pf-9", forged, "fs-" + "y" * 52, "net-pf-9"]
    assert all(one.wait for one in requests)
    assert "\nsh-1 [000] d 1: module_request: evil wait=1" in FIXTURE["text"]


def test_recorded_loss() -> None:
    """700 requests and room for fewer: the page that the reader had is kept, the next says that some are missing."""
    read, requests = recorded("pages_of_700")
    assert [page.missed for page in read] == [False, True, False, False]
    assert not any(page.damaged for page in read)
    assert 100 < len(requests) < 700
    assert {one.name for one in requests} == {"net-pf-9"}
    assert [one.timestamp_ns for one in requests] == sorted({one.timestamp_ns for one in requests})
