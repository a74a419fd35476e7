"""`kmodd history`: the decisions of the journal as a table and as objects, selected as journalctl does."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from kmodd.cli import history
from kmodd.cli.journal_options import with_boot
from tests import program
from tests.journal_files import BOOTS, record, write_journal

USB = "/devices/pci0000:00/0000:00:14.0/usb2/2-1"
RECORDS = [
    record("f122", 0.5, 0, MESSAGE="Listening"),
    record(
        "f105", 2.0, 0, PRIORITY="5", KMODD_RESULT="denied", KMODD_SOURCE="request", KMODD_ALIAS="net-pf-38",
        KMODD_MODULE="af_alg", KMODD_FILE="/etc/kmodd/policy.d/50-x.conf", KMODD_LINE="29", KMODD_RULE="deny uid=1000-",
        KMODD_REQUESTER_PID="4242", KMODD_REQUESTER_COMM="python3", KMODD_REQUESTER_EXE="/usr/bin/python3",
        KMODD_REQUESTER_UID="1000", KMODD_REQUESTER_CONTAINER="no", KMODD_REQUEST_ID="3",
    ),
    record(
        "f101", 3.0, KMODD_RESULT="loaded", KMODD_SOURCE="uevent", KMODD_ALIAS="usb:v1", KMODD_MODULE="uas",
        KMODD_MODULES=["usb_storage", "uas"], KMODD_DEVPATH=f"{USB}/2-1:1.0", KMODD_DEVICE_NAME="A\x1b[31m",
        KMODD_SUBSYSTEM="usb", KMODD_DURATION_USEC="51000", KMODD_REQUEST_ID="9",
        KMODD_INIT_USEC=["usb_storage:1000", "uas:2000"],
    ),
    record("f101", 3.0, PRIORITY="7", KMODD_RESULT="loaded", KMODD_MODULE="usb_storage", KMODD_REQUEST_ID="9"),
    record("f101", 4.0, _UID="1000", KMODD_RESULT="loaded", KMODD_MODULE="forged"),
    record("f107", 5.0, PRIORITY="3", KMODD_RESULT="failed", KMODD_SOURCE="operator", KMODD_MODULE="bad", ERRNO="129"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return write_journal(tmp_path / "journal", RECORDS)


def results(folder: str, *words: str) -> list[str]:
    said = program.run(["history", "--directory", folder, "--json", *words])
    return [json.loads(line)["module"] for line in said.out.splitlines()]


def test_a_table_has_a_line_for_each_decision_of_root(folder: str) -> None:
    """Not the daemon's own events, nor the modules of a decision again, nor a record that a user forged."""
    said = program.run(["history", "-D", folder], environment={"TZ": "UTC"})
    assert said.out.decode().splitlines() == [
        "TIME             RESULT  MODULE  FOR                      TOOK  DETAIL",
        f"-- Boot {BOOTS[0]} --",
        "Nov 14 22:13:22  denied  af_alg  python3[4242] uid 1000   -     /etc/kmodd/policy.d/50-x.conf:29",
        f"-- Boot {BOOTS[1]} --",
        r'Nov 15 22:13:23  loaded  uas     usb 2-1:1.0 "A\x1b[31m"  51ms  with usb_storage',
        "Nov 15 22:13:25  failed  bad     root                     -     EKEYREJECTED",
    ]
    assert (said.err, said.status) == (b"", 0)


@pytest.mark.parametrize(
    ("words", "modules"),
    [
        ("", ["af_alg", "uas", "bad"]),
        ("-b", ["uas", "bad"]),
        ("-b 0", ["uas", "bad"]),
        ("-b -1", ["af_alg"]),
        ("-b-1", ["af_alg"]),
        (f"--boot={BOOTS[0]}", ["af_alg"]),
        ("--since 2023-11-15", ["uas", "bad"]),
        ("--until 2023-11-15", ["af_alg"]),
        ("--module usb-storage", ["uas"]),
        ("--module af_alg", ["af_alg"]),
        (f"--device /sys{USB}", ["uas"]),
        (f"--device {USB}/2-1:1.0", ["uas"]),
        ("--device 2-1:1.0", ["uas"]),
        ("--device 2-1", ["uas"]),
        ("--device 1:1.0", []),
        ("--user 1000", ["af_alg"]),
        ("--user 0", []),
        ("--result loaded,failed", ["uas", "bad"]),
        ("--result loaded --result denied", ["af_alg", "uas"]),
        ("--module uas --result failed", []),
        ("-n 1", ["bad"]),
    ],
)
def test_filters(words: str, modules: list[str], folder: str) -> None:
    assert results(folder, *words.split()) == modules


def test_objects_have_the_keys_of_the_page(folder: str) -> None:
    page = (program.ROOT / "docs/JOURNAL.md").read_text().partition("## JSON\n")[2].partition("`kmodd why --json`")[0]
    keys = [key for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)]
    denied, loaded, failed = map(json.loads, program.run(["history", "-D", folder, "--json"]).out.splitlines())
    assert set(denied) == set(keys)
    assert (denied["file"], denied["line"], denied["rule"]) == ("/etc/kmodd/policy.d/50-x.conf", 29, "deny uid=1000-")
    assert denied["requester"] == {
        "pid": 4242, "comm": "python3", "exe": "/usr/bin/python3", "uid": 1000, "loginuid": None, "unit": None,
        "cgroup": None, "container": False, "kernel": False,
    }  # fmt: skip
    assert (loaded["modules"], loaded["init_usec"]) == (["usb_storage", "uas"], {"usb_storage": 1000, "uas": 2000})
    assert (failed["errno"], failed["requester"], failed["program"]) == (129, None, "kmodd")


@pytest.mark.parametrize(
    ("words", "status", "why"),
    [
        ("--result lost", 2, "invalid --result 'lost'; expected loaded, live, "),
        ("--user no-such-user", 2, "unknown user 'no-such-user'"),
        ("-n x", 2, "invalid --lines 'x'; expected a number"),
        ("operand", 2, "unexpected operand 'operand'"),
        ("--since nonsense", 1, "Failed to parse timestamp: nonsense"),
        ("-b -9", 1, "specified boot (-9)"),
        ("--module nosuch", 1, "kmodd history: no such record"),
    ],
)
def test_what_cannot_be_shown_is_one_line(words: str, status: int, why: str, folder: str) -> None:
    said = program.run(["history", "-D", folder, *words.split()])
    assert (said.out, said.status) == (b"", status)
    assert why in said.err.decode()
    assert said.err.count(b"\n") == 1


def test_the_boot_is_the_next_word_only_if_it_is_one() -> None:
    """As of journalctl: `-b` alone is the current boot."""
    assert with_boot(["-b", "--json"]) == ["--boot=0", "--json"]
    assert with_boot(["--boot", "-1", "x"]) == ["--boot=-1", "x"]
    assert with_boot(["-b", "e1000e"]) == ["--boot=0", "e1000e"]
    assert with_boot(["-b", BOOTS[0], "--", "-b"]) == [f"--boot={BOOTS[0]}", "--", "-b"]
    assert with_boot(["--boot=-2", "-b-1"]) == ["--boot=-2", "-b-1"]


@pytest.mark.parametrize("status", [0, 1])
def test_an_earlier_boot_of_a_volatile_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], status: int
) -> None:
    """journalctl of systemd 252 returns 0 without records, later ones 1. Control: with a journal on disk, its line."""
    (tmp_path / "journalctl").write_text(f"#!/bin/sh\necho 'no persistent journal' >&2\nexit {status}\n")
    (tmp_path / "journalctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for volatile in (True, False):
        monkeypatch.setattr("kmodd.cli.journal_options.is_volatile", lambda volatile=volatile: volatile)
        assert history.main(["-b", "-1"]) == 1
        said = capfd.readouterr().err
        assert "no persistent journal" in said
        assert ("the journal is kept in memory only, so earlier boots are gone" in said) == volatile
        assert ("no such record" in said) == (not volatile and status == 0)


@pytest.mark.root
def test_a_user_is_told_who_may_read_the_journal(tmp_path: Path) -> None:
    """Whether journalctl fails or shows nothing. Control: root."""
    tmp_path.chmod(0o755)
    for status in (0, 1):
        (tmp_path / "journalctl").write_text(f"#!/bin/sh\nexit {status}\n")
        (tmp_path / "journalctl").chmod(0o755)
        words = program.command("history")
        for user in ((), ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")):
            environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": ""}
            done = subprocess.run([*user, *words], env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 1
            assert ("may read the system's journal" in done.stderr) == bool(user), done.stderr


def test_without_journalctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert history.main([]) == 1
    assert (
        capfd.readouterr().err == "kmodd history: Failed to read the journal: No such file or directory: journalctl\n"
    )


def test_a_narrow_terminal_has_the_time_of_day_and_no_details(folder: str) -> None:
    shown = program.on_terminal(["history", "-b", "-D", folder], {"COLUMNS": "40", "TERM": "xterm", "TZ": "UTC"})
    lines = re.sub(rb"\x1b\[[\d;]*m", b"", shown).decode().splitlines()
    assert [len(line) for line in lines if len(line) > 40] == []
    assert lines[1].startswith("22:13:23  loaded  uas")
    assert b"\x1b[0;1;31m22:13:25  failed" in shown
    plain = program.on_terminal(["history", "-D", folder], {"COLUMNS": "40", "TERM": "xterm", "NO_COLOR": "1"})
    assert b"\x1b" not in plain
