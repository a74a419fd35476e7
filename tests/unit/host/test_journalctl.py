"""The journal as values: real journal files, read by the real journalctl, become entries of kmodd and nothing else."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from kmodd.errors import Where
from kmodd.host.journalctl import Query, command_of, journal_records
from kmodd.kernel.requester import Requester
from kmodd.planning.history import Entry, Ignored, entries_of
from tests.journal_files import BEGIN, BOOTS, DAY, record, write_journal

DEVICE = record(
    "f101", 3.0,
    KMODD_RESULT="loaded", KMODD_SOURCE="uevent", KMODD_ALIAS="usb:v1", KMODD_BECAUSE="alias usb:v*",
    KMODD_PATTERN="usb:v*", KMODD_REQUEST_ID="7", KMODD_MODULE="uas", KMODD_MODULES=["usb_storage", "uas"],
    KMODD_PATH="/lib/modules/6/uas.ko", KMODD_DEVPATH=["/devices/a", "/devices/b"], KMODD_DEVICES_COUNT="20",
    KMODD_DEVICE_NAME="A \udcffB\n", KMODD_SUBSYSTEM="usb", KMODD_BEGIN_MONOTONIC_USEC="2000000",
    KMODD_REASON="usb_storage:dependency of uas:x",
    KMODD_WAIT_USEC="4", KMODD_DURATION_USEC="51000", KMODD_INIT_USEC=["usb_storage:1000", "uas:2000"],
)  # fmt: skip
PROCESS = record(
    "f105", 2.0, 0, PRIORITY="5",
    KMODD_RESULT="denied", KMODD_SOURCE="request", KMODD_ALIAS="net-pf-38", KMODD_MODULE="af_alg",
    KMODD_FILE="/etc/kmodd/policy.d/50-x.conf", KMODD_LINE="29", KMODD_RULE="deny uid=1000-", ERRNO="1",
    KMODD_REQUESTER_PID="4242", KMODD_REQUESTER_COMM="python3", KMODD_REQUESTER_EXE="/usr/bin/python3",
    KMODD_REQUESTER_UID="1000", KMODD_REQUESTER_LOGINUID="1000", KMODD_REQUESTER_CGROUP="/u",
    KMODD_REQUESTER_UNIT="u.scope", KMODD_REQUESTER_CONTAINER="yes", KMODD_REPEATED="3",
)  # fmt: skip


def entries(query: Query) -> list[Entry]:
    with journal_records(query) as lines:
        return list(entries_of(lines))


def test_a_record_becomes_a_value_with_all_its_fields(tmp_path: Path) -> None:
    """Repeated fields, bytes that are no UTF-8 and line ends come through."""
    folder = write_journal(tmp_path / "j", [PROCESS, DEVICE])
    process, device = entries(Query(directory=folder))
    assert device == Entry(
        "f101", "x", 6, BEGIN + DAY + 3_000_000, 3_000_000, BOOTS[1], "m", 333, "kmodd", "loaded", "uevent", 7, "uas",
        ("usb_storage", "uas"), "usb:v1", "usb:v*", "alias usb:v*", "/lib/modules/6/uas.ko",
        ("/devices/a", "/devices/b"), 20, "A \udcffB\n", "usb", 2_000_000, 4, 51_000,
        (("usb_storage", 1000), ("uas", 2000)), (("usb_storage", "dependency of uas:x"),),
    )  # fmt: skip
    assert process.requester == Requester(4242, "python3", "/usr/bin/python3", 1000, 1000, "/u", "u.scope", True)
    assert (process.at, process.rule) == (Where("/etc/kmodd/policy.d/50-x.conf", 29), "deny uid=1000-")
    assert (process.errno, process.repeated, process.priority, process.changed) == (1, 3, 5, ())
    assert device.changed == ("usb_storage", "uas")


def test_boots_times_and_matches_are_journalctls(tmp_path: Path) -> None:
    folder = write_journal(tmp_path / "j", [PROCESS, DEVICE, record("f122", 9.0)])
    kinds = {
        Query(): ["f105", "f101", "f122"],
        Query(boot=BOOTS[0]): ["f105"],
        Query(boot="-1"): ["f105"],
        Query(since=f"@{(BEGIN + DAY) // 1_000_000}"): ["f101", "f122"],
        Query(until=f"@{(BEGIN + DAY) // 1_000_000}"): ["f105"],
        Query(since="5min"): [],
        Query(matches=("KMODD_MODULES=usb_storage",)): ["f101"],
        Query(matches=("KMODD_MODULE=af_alg", "+", "KMODD_MODULES=uas")): ["f105", "f101"],
        Query(matches=(f"MESSAGE_ID={PROCESS['MESSAGE_ID']}",)): ["f105"],
    }
    for query, wanted in kinds.items():
        of_folder = Query(query.boot, query.since, query.until, folder, matches=query.matches)
        assert [entry.kind for entry in entries(of_folder)] == wanted, query
    with pytest.raises(subprocess.CalledProcessError):
        entries(Query(boot="-5", directory=folder))


def test_records_that_root_did_not_write_are_no_history(tmp_path: Path) -> None:
    """Any user can write to the journal in kmodd's name; journalctl leaves such out, and so does what reads a file.

    Control: the same record of root.
    """
    for uid, count in (("1000", 0), ("0", 1)):
        folder = write_journal(tmp_path / uid, [{**DEVICE, "_UID": uid}, record("f101", SYSLOG_IDENTIFIER="other")])
        for matches in ((), ("KMODD_MODULE=x", "+", "KMODD_MODULES=uas")):
            assert len(entries(Query(directory=folder, matches=matches))) == count
        everything = subprocess.run(
            ["journalctl", "--output=json", "--all", f"--directory={folder}"],
            capture_output=True,
            check=True,
            text=True,
        )
        file = tmp_path / f"{uid}.json"
        file.write_text(everything.stdout + "nonsense\n")
        ignored = Ignored()
        with journal_records(Query(source=str(file))) as lines:
            assert len(list(entries_of(lines, ignored))) == count
        assert (ignored.distrusted, ignored.unreadable) == (1 - count, 1)


def test_details_of_a_decision_are_told_from_it() -> None:
    detail = {**DEVICE, "PRIORITY": "7"}
    del detail["KMODD_MODULES"]
    (each,) = entries_of([json.dumps(detail)])
    assert (each.is_detail, each.is_decision, each.changed) == (True, False, ("uas",))
    (each,) = entries_of([json.dumps(DEVICE)])
    assert (each.is_detail, each.is_decision) == (False, True)
    (each,) = entries_of([json.dumps(record("f122"))])
    assert (each.is_detail, each.is_decision) == (False, False)


def test_a_number_that_is_none_is_left_out() -> None:
    odd = {**DEVICE, "KMODD_DURATION_USEC": "-1", "_PID": "9" * 30, "KMODD_INIT_USEC": ["", "a:b:3", "c:x"]}
    (each,) = entries_of([json.dumps(odd)])
    assert (each.duration, each.pid, each.inits) == (0, 0, (("", 0), ("a:b", 3), ("c", 0)))


def test_conditions_joined_by_or_keep_the_trust() -> None:
    """Each side of a `+` has the conditions of its own; journalctl joins no other."""
    command = command_of(Query(boot="-1", since="2h", until="yesterday", matches=("A=1", "+", "B=2")))
    own = ["_UID=0", "SYSLOG_IDENTIFIER=kmodd"]
    assert command[5:] == ["--boot=-1", "--since=-2h", "--until=yesterday", *own, "A=1", "+", *own, "B=2"]
