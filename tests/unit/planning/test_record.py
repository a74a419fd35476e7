"""Journal records of outcomes: fields and sentence."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from kmodd.dataclass import replace
from kmodd.errors import Where
from kmodd.kernel.requester import Requester
from kmodd.names import ModuleName
from kmodd.planning import record
from kmodd.planning.history import entry_of
from kmodd.planning.load_errors import of_load
from kmodd.planning.outcome import DRY_RUN, Outcome, Result, not_attempted
from kmodd.planning.plan import Insmod, Install, Reason
from kmodd.planning.record import DEBUG, ERR, INFO, NOTICE, WARNING, record_of
from kmodd.planning.request import Request

CARD = Request("pci:v1", "uevent", ("/devices/pci0000:00/0000:01:00.0",), 1)
MATCHED = Reason("alias", "pci:v1", "pci:v*", Where("modules.alias", 7))


def test_a_load_names_module_alias_pattern_device_and_time() -> None:
    told = record_of(Outcome(CARD, "e1000e", "loaded", MATCHED, "/lib/modules/6/e1000e.ko", 0, 263401))
    assert told.message == "Loaded e1000e for 0000:01:00.0 in 263ms"
    assert told.priority == INFO
    assert dict(told.fields) == {
        "KMODD_RESULT": "loaded",
        "KMODD_SOURCE": "uevent",
        "KMODD_ALIAS": "pci:v1",
        "KMODD_BECAUSE": "alias matched pci:v* of modules.alias:7",
        "KMODD_MODULE": "e1000e",
        "KMODD_PATTERN": "pci:v*",
        "KMODD_PATH": "/lib/modules/6/e1000e.ko",
        "KMODD_DURATION_USEC": "263401",
        "KMODD_DEVPATH": "/devices/pci0000:00/0000:01:00.0",
    }


def test_many_devices_are_named_up_to_sixteen_and_counted() -> None:
    """`KMODD_DEVPATH` (repeated for up to 16 devices, then `KMODD_DEVICES_COUNT`)."""
    request = Request("cpu:x", "coldplug", tuple(f"/devices/cpu{n}" for n in range(16)), 1536)
    told = record_of(Outcome(request, "kvm", "failed", MATCHED, errno=errno.ENODEV))
    assert sum(name == "KMODD_DEVPATH" for name, _ in told.fields) == 16
    assert ("KMODD_DEVICES_COUNT", "1536") in told.fields
    assert "for 1536 devices, first cpu0" in told.message


@pytest.mark.parametrize("ambiguous", [True, False])
def test_an_unknown_process_is_told_from_one_of_several(ambiguous: bool) -> None:
    """A user can have root's request denied by asking for the same name again and again."""
    request = Request("net-pf-38", "request", ambiguous=ambiguous)
    record = record_of(Outcome(request, "af_alg", "denied", Reason("asked", "net-pf-38")))
    fields = [value for name, value in record.fields if name.startswith("KMODD_REQUESTER_")]
    assert (fields, "several processes" in record.message) == ((["yes"], True) if ambiguous else ([], False))


def test_processes_of_whom_one_has_asked_are_on_record_with_what_rules_ask() -> None:
    """`kmodd history` and `policy suggest` read them as they were; the number and name of a process is in no rule."""
    candidates = (
        Requester(7, "a", "/usr/bin/a b", 0, None, "/system.slice/x.service", "x.service", False),
        Requester(8, "b", "", 1000, 1000, "/c", "", True),
        Requester(9, "cryptomgr_probe", "", 0, None, "/", "", False, is_kernel=True),
    )
    request = Request("net-pf-38", "request", ambiguous=True, candidates=candidates)
    fields = record_of(Outcome(request, "af_alg", "loaded", Reason("asked", "net-pf-38"))).fields
    texts = [value for name, value in fields if name == "KMODD_REQUESTER_CANDIDATE"]
    assert texts == [
        "uid=0 container=no unit=x.service exe=/usr/bin/a b",
        "uid=1000 container=yes unit=- exe=",
        "uid=0 container=no unit=- kernel=yes exe=",
    ]
    read = entry_of({"_UID": "0", "KMODD_REQUESTER_CANDIDATE": texts})
    assert read is not None
    assert read.candidates == tuple(replace(each, pid=0, comm="", loginuid=None, cgroup="") for each in candidates)
    damaged = entry_of({"_UID": "0", "KMODD_REQUESTER_CANDIDATE": [texts[0], "uid=x"]})
    assert damaged is not None
    assert damaged.candidates == (), "one of them is unknown"


def test_a_dry_run_names_the_command_that_would_run() -> None:
    at = Where("/etc/modprobe.d/a.conf", 3)
    step = Install(ModuleName("usb_storage"), "/bin/mount-it $CMDLINE_OPTS", "a=1", at, MATCHED)
    assert record_of(not_attempted(CARD, step, DRY_RUN)).message == (
        "Would run /bin/mount-it $CMDLINE_OPTS at /etc/modprobe.d/a.conf:3 for usb_storage for 0000:01:00.0; "
        "its effect is not known"
    )
    load = Insmod(ModuleName("usb_storage"), "/x.ko", "", MATCHED)
    assert record_of(not_attempted(CARD, load, DRY_RUN)).message == "Would load usb_storage for 0000:01:00.0"


@pytest.mark.parametrize(
    ("result", "code", "level", "words"),
    [
        ("live", 0, DEBUG, "is loaded already"),
        ("builtin", 0, DEBUG, "is built into the kernel"),
        ("blacklisted", 0, INFO, "blacklisted at /etc/modprobe.d/a.conf:3"),
        ("failed", errno.ENODEV, NOTICE, "ENODEV, no such device"),
        ("failed", errno.ENOENT, WARNING, "unknown symbol"),
        ("failed", errno.ENOTTY, ERR, "ENOTTY"),
        ("missing", errno.ENOENT, WARNING, "is missing"),
        ("nomatch", 0, DEBUG, "nothing matches pci:v1"),
    ],
)
def test_level_and_words_of_each_result(result: Result, code: int, level: int, words: str) -> None:
    """Levels as in systemd's module-util.c: ENODEV notice, ENOENT warning, anything else error."""
    load_error = of_load("x", code, None) if result == "failed" else None
    at = Where("/etc/modprobe.d/a.conf", 3)
    told = record_of(Outcome(CARD, "x", result, MATCHED, "/x.ko", code, 5, at, load_error=load_error))
    assert told.priority == level
    assert words in told.message


def test_every_result_has_its_own_message_id_and_an_entry_in_the_catalogue() -> None:
    """One MESSAGE_ID per kind of record."""
    catalogue = Path(__file__).parents[3] / "systemd" / "kmodd.catalog"
    explained = set(re.findall(r"^-- ([0-9a-f]{32})", catalogue.read_text(), re.MULTILINE))
    ids = [record_of(Outcome(CARD, "x", result, MATCHED)).message_id for result in record.KINDS]
    assert len(set(ids)) == len(ids)
    assert set(ids) <= explained
