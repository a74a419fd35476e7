"""Records of the journal with any values: each is an entry or is counted, and every question has an answer."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.planning.history import Entry, Filter, Ignored, as_object, entries_of, subject_of_entry
from kmodd.planning.why import Device, Module, Records, answer_object, of_alias, of_device, of_module, of_process
from tests.journal_files import BOOTS

pytestmark = pytest.mark.property

WORDS = (
    "a", "b", "loaded", "denied", "removed", "live", "stuck", "uevent", "request", "coldplug", "7", "0", "-1", "9" * 40,
    "a:dependency of b", "b:dependency of a", "a:softdep of a in x:1", "dependency of b", "/devices/x", "/devices/x/y",
    "uid=0 container=no unit=- exe=a", "uid=0 container=no unit=- kernel=yes exe=",
    "alias matched a of x:1", "a:3", ":", "", "\x1b\n\u202e", "\ud800", "no", "yes", BOOTS[0],
)  # fmt: skip
FIELDS = (
    "MESSAGE MESSAGE_ID PRIORITY _UID _PID _COMM _BOOT_ID __REALTIME_TIMESTAMP __MONOTONIC_TIMESTAMP ERRNO "
    "KMODD_RESULT KMODD_SOURCE KMODD_REQUEST_ID KMODD_MODULE KMODD_MODULES KMODD_ALIAS KMODD_PATTERN "
    "KMODD_BECAUSE KMODD_DEVPATH KMODD_DEVICES_COUNT KMODD_SUBSYSTEM KMODD_BEGIN_MONOTONIC_USEC "
    "KMODD_WAIT_USEC KMODD_DURATION_USEC KMODD_INIT_USEC KMODD_REASON KMODD_FILE KMODD_LINE KMODD_RULE "
    "KMODD_REQUESTER_PID KMODD_REQUESTER_UID KMODD_REQUESTER_LOGINUID KMODD_REQUESTER_AMBIGUOUS KMODD_REPEATED "
    "KMODD_REQUESTER_CANDIDATE "
    "KMODD_VERSION KMODD_LOADED_BEFORE"
).split()
WORD = st.sampled_from(WORDS)
VALUES = st.one_of(
    WORD, st.lists(WORD, max_size=3), st.none(), st.integers(), st.lists(st.integers(-1, 300), max_size=4),
    st.lists(st.lists(st.integers(0, 255), max_size=3), max_size=2), st.booleans(),
    st.dictionaries(WORD, WORD, max_size=1),
)  # fmt: skip
RECORDS = st.dictionaries(st.sampled_from(FIELDS), VALUES).map(
    lambda fields: {"_UID": "0", "SYSLOG_IDENTIFIER": "kmodd", **fields}
)
MODULES = st.sampled_from(
    [Module("a", "live"), Module("a", "coming"), Module("a"), Module("b", "builtin"), Module("b", is_known=False)]
)


@given(st.lists(RECORDS, max_size=6), MODULES, st.booleans(), st.booleans())
def test_no_record_ends_an_answer(records: list[dict[str, object]], module: Module, past: bool, readable: bool) -> None:
    ignored = Ignored()
    entries = list(entries_of(map(json.dumps, records), ignored))
    assert len(entries) + ignored.distrusted == len(records)
    known = Records(tuple(entries), past, readable)
    device = Device("/devices/x", "x", True, ("a",), "", "", (module,))
    found = [
        of_module(module, known), *of_device(device, known), *of_process(7, "", "", known, Module),
        *of_alias("a", known, Module),
        *of_device(Device("/devices/x", "x", True, ("a",), "d", "a", (module,)), known),
        *of_device(Device("/devices/x", "x", False), known),
    ]  # fmt: skip
    for answer in found:
        assert answer.sentence is not None
        json.dumps(answer_object(answer))
    for entry in entries:
        json.dumps(as_object(entry))
        subject_of_entry(entry)
        assert Filter().admits(entry)


@given(st.lists(st.one_of(st.text(max_size=30), st.sampled_from(["[]", "{}", "3", "[" * 5000, '{"_UID": "0"}']))))
def test_any_line_is_read_or_counted(lines: list[str]) -> None:
    ignored = Ignored()
    assert list(entries_of(lines, ignored)) == []
    assert ignored.unreadable <= len(lines)


def test_a_record_as_kmodd_writes_it_is_read() -> None:
    """The control."""
    line = json.dumps({"_UID": "0", "SYSLOG_IDENTIFIER": "kmodd", "KMODD_RESULT": "loaded", "KMODD_MODULE": "a"})
    (entry,) = entries_of([line])
    assert isinstance(entry, Entry)
    assert (entry.result, entry.module) == ("loaded", "a")
