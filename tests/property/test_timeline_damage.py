"""Records with fields that are drawn: the timeline is a well-formed picture, and text and tables that fit."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kmodd.cli.timeline_svg import draw
from kmodd.planning.history import entries_of
from kmodd.planning.timeline import timeline_of, waited_meanwhile
from tests.journal_files import record

pytestmark = pytest.mark.property

FIELDS = (
    "KMODD_BEGIN_MONOTONIC_USEC", "KMODD_WAIT_USEC", "KMODD_DURATION_USEC", "KMODD_INIT_USEC", "KMODD_MODULE",
    "KMODD_MODULES", "KMODD_DEVPATH", "KMODD_DEVICE_NAME", "KMODD_SUBSYSTEM", "KMODD_SOURCE", "KMODD_REQUESTER_UID",
    "MESSAGE", "_HOSTNAME", "__MONOTONIC_TIMESTAMP",
)  # fmt: skip
texts = st.text(st.characters(max_codepoint=0x2FFFF), max_size=12)
numbers = st.integers(-5, 10**20).map(str)
values = st.one_of(numbers, texts, st.tuples(texts, numbers).map(":".join), st.just("/devices/x"))
fields = st.dictionaries(st.sampled_from(FIELDS), st.one_of(values, st.lists(values, min_size=1, max_size=3)))
records = st.tuples(st.sampled_from(["f101", "f107", "f109", "f122", "f126"]), fields)
RESULTS = {"f101": "loaded", "f107": "failed", "f109": "stuck"}


@settings(deadline=None)
@given(st.lists(records, max_size=6))
def test_any_records_are_a_picture(drawn: list[tuple[str, dict[str, str | list[str]]]]) -> None:
    lines = []
    for kind, changed in drawn:
        result = {"KMODD_RESULT": RESULTS[kind]} if kind in RESULTS else {}
        lines.append(json.dumps({**record(kind), **result, **changed}))
    timeline = timeline_of(entries_of(lines))
    for load in timeline.loads:
        assert timeline.begin <= load.begin <= load.start <= load.end <= timeline.end
        for name, part in load.parts:
            waited_meanwhile(name, part, timeline.loads, lambda _: frozenset())
    svg = ElementTree.fromstring(draw(timeline).encode())
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    for each in svg.iter("{http://www.w3.org/2000/svg}rect"):
        x, y, across, down = (float(each.attrib[name]) for name in ("x", "y", "width", "height"))
        assert 0 <= x <= x + across <= width
        assert 0 <= y <= y + down <= height


def test_a_control_character_would_be_no_picture() -> None:
    """The control."""
    with pytest.raises(ElementTree.ParseError):
        ElementTree.fromstring("<svg><text>\x1b</text></svg>")
