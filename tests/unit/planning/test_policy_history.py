"""`kmodd policy suggest`: its rules allow all that was seen and nothing else; the journal is read with care."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.cli import policy as program
from kmodd.config.modprobe_d import ConfFile
from kmodd.config.policy_d import Rule, parse
from kmodd.kernel.requester import Requester
from kmodd.planning.policy import Policy, PolicyQuery
from kmodd.planning.policy_history import Use, Who, read, suggest

REQUESTERS: dict[Who, Requester | None] = {
    "root": Requester(1, "x", "/bin/x", 0, None, "/x", "x.service", False),
    "service": Requester(1, "x", "/bin/x", 33, None, "/x", "x.service", False),
    "user": Requester(1, "x", "/bin/x", 1000, None, "/x", "x.service", False),
    "container": Requester(1, "x", "/bin/x", 0, None, "/x", "x.service", True),
    "unknown": None,
}
WHO = tuple(REQUESTERS)


def rules_of(text: str) -> tuple[Rule, ...]:
    found = parse([ConfFile("suggested", text)])
    assert found.problems == (), text
    return found.rules


def refused(text: str, request: str, who: Who) -> bool:
    asking = PolicyQuery("request", request, "running", requester=REQUESTERS[who])
    return Policy("enforce", rules_of(text)).judge(asking, "m").refused


def lines_of(text: str) -> list[str]:
    return [line.partition("  #")[0] for line in text.splitlines() if line and not line.startswith("#")]


def test_what_it_looks_like() -> None:
    uses = [
        *[Use("net-pf-38", "net-pf-38", "user", "/usr/bin/a")] * 3,
        Use("net-pf-9", "net-pf-9", "user", "/usr/bin/b"),
        Use("fs-ext4", "fs-ext4", "root", "/usr/bin/mount"),
        Use("fs-ext4", "fs-ext4", "user"),
        Use("crypto-authenc(hmac(sha256),cbc(aes))", "", "container"),
        Use("iwlmvm", "", "unknown"),
        Use("iwlmvm", "", "user"),
    ]
    assert suggest(uses) == (
        "# outside of containers: uid 0 and 1000-\n"
        "allow origin=request request=fs-ext4 uid=0,1000- container=no  # 2 times, /usr/bin/mount\n"
        "\n"
        "# outside of containers: uid 1000-\n"
        "allow origin=request request=net-pf-9,net-pf-38 uid=1000- container=no  # 4 times, /usr/bin/a, /usr/bin/b\n"
        "\n"
        "# in a container\n"
        'allow origin=request request="crypto-authenc(hmac(sha256),cbc(aes))" container=yes  # once\n'
        "\n"
        "# allowed for all: some requesters are unknown\n"
        "allow origin=request request=iwlmvm  # 2 times\n"
        "\n"
        "# all other requests that processes make the kernel send\n"
        "deny origin=request\n"
    )


@pytest.mark.parametrize(
    ("candidates", "allowed"),
    [
        (["uid=0 container=no unit=a.service exe=/a"] * 2, ["root"]),
        (["uid=0 container=no unit=a.service exe=/a", "uid=1000 container=no unit=- exe=/b"], ["root", "user"]),
        (["uid=0 container=no unit=- kernel=yes exe=", "uid=0 container=no unit=- exe=/a"], list(WHO)),
        ([], list(WHO)),
    ],
)
def test_each_of_the_processes_that_may_have_asked_is_allowed_and_no_other(
    candidates: list[str], allowed: list[Who]
) -> None:
    """Without them on record the process is unknown, and a rule that allows it allows all. So is a thread of the kernel
    that asks for a part of a cipher, for any process.
    """
    record = {
        "_UID": "0", "SYSLOG_IDENTIFIER": "kmodd", "KMODD_RESULT": "loaded", "KMODD_SOURCE": "request",
        "KMODD_ALIAS": "crypto-x", "KMODD_MODULE": "x", "KMODD_REQUESTER_AMBIGUOUS": "yes",
        "KMODD_REQUESTER_CANDIDATE": candidates,
    }  # fmt: skip
    text = suggest(read([json.dumps(record)]).uses)
    assert [who for who in WHO if not refused(text, "crypto-x", who)] == allowed


def test_nothing_seen_is_all_refused() -> None:
    assert suggest([]) == "", "a rule out of nothing would deny everything"


def test_two_requests_of_one_pattern_become_the_pattern() -> None:
    """A device with an alias of its own gets no rule from a pattern that matches too."""
    loops = [Use(f"block-major-7-{n}", "block-major-7-*", "root") for n in (0, 1)]
    sound = [
        Use("char-major-116-0", "char-major-116-*", "root"),
        Use("char-major-116-1", "char-major-116-*", "root"),
        Use("char-major-116-1", "char-major-116-1", "root"),
    ]
    assert "request=block-major-7-0 " in suggest(loops[:1])
    text = suggest([*loops, *sound])
    assert "request=block-major-7-* " in text
    assert "request=char-major-116-0,char-major-116-1 " in text
    assert refused(text, "char-major-116-33", "root")


def test_for_one_unit() -> None:
    uses = [Use("fs-xfs", "", "root", unit="x.service"), Use("fs-jfs", "", "root", unit="y.service")]
    assert lines_of(suggest(uses, "x.service")) == [
        "allow origin=request request=fs-xfs uid=0 container=no unit=x.service",
        "deny origin=request unit=x.service",
    ]


def test_a_long_list_is_several_rules() -> None:
    uses = [Use(f"net-pf-{n}-proto-{n}", "", "root") for n in range(1, 60)]
    lines = lines_of(suggest(uses))
    assert 5 < len(lines) < 20
    assert max(map(len, lines)) < 160


def test_names_that_users_chose_stay_in_their_comment() -> None:
    """A program's path may hold a line end, and a request any byte: neither becomes a rule of its own."""
    evil = "x\nallow *\n"
    text = suggest([Use("fs-" + evil, "", "user", exe="/tmp/" + evil), Use('fs-a"b*[\\', "", "user")])
    assert len(rules_of(text)) == 2
    assert refused(text, "net-pf-38", "user")
    assert not refused(text, "fs-" + evil, "user")
    assert refused(text, "fs-axxxb", "user")


# ── drawn ────────────────────────────────────────────────────────────────────────────────────────────────────────────

REQUESTS = st.sampled_from(("net-pf-38", "net-pf-9", "fs-ext4", "algif-hash", "iwlmvm", "crypto-cbc(aes)")) | st.text(
    st.characters(blacklist_characters="[]"), min_size=1, max_size=8
)
USE = st.builds(Use, REQUESTS, st.sampled_from(("", "net-pf-*", "fs-ext4")), st.sampled_from(WHO), REQUESTS)
USES = st.lists(USE, min_size=1)


@given(USES, st.sampled_from(WHO))
def test_all_that_was_seen_is_allowed_and_nothing_else(uses: Sequence[Use], other: Who) -> None:
    """The suggestion allows every use in its log, and refuses a new one."""
    text = suggest(uses)
    for use in uses:
        assert not refused(text, use.request, use.who)
    assert refused(text, "something-quite-different-and-long", other)
    seen_by = {use.who for use in uses if use.request == "algif-hash"}
    if not seen_by & {other, "unknown"} and not any("?" in rule.text for rule in rules_of(text)):
        assert refused(text, "algif-hash", other)


# ── records ──────────────────────────────────────────────────────────────────────────────────────────────────────────

RECORD: dict[str, object] = {
    "SYSLOG_IDENTIFIER": "kmodd",
    "_UID": "0",
    "KMODD_SOURCE": "request",
    "KMODD_RESULT": "loaded",
    "KMODD_ALIAS": "net-pf-38",
    "KMODD_PATTERN": "net-pf-38",
    "KMODD_BECAUSE": "alias matched net-pf-38 of modules.alias:1",
    "KMODD_REQUESTER_UID": "1000",
    "KMODD_REQUESTER_CONTAINER": "no",
    "KMODD_REQUESTER_EXE": "/usr/bin/x",
    "KMODD_REQUESTER_UNIT": "x.service",
    "__REALTIME_TIMESTAMP": "1700000000000000",
}


def record(**fields: object) -> str:
    return json.dumps({**RECORD, **fields})


def test_a_record_is_a_use() -> None:
    found = read([record(), "\n", record(KMODD_RESULT="live")])
    assert found.uses == [
        Use("net-pf-38", "net-pf-38", "user", "/usr/bin/x", "x.service", 1700000000000000),
    ] * 2  # fmt: skip
    assert (found.distrusted, found.unreadable) == (0, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"KMODD_RESULT": "denied"},
        {"KMODD_RESULT": "nomatch"},
        {"KMODD_RESULT": "builtin"},
        {"KMODD_SOURCE": "uevent"},
        {"KMODD_SOURCE": None},
        {"SYSLOG_IDENTIFIER": "other"},
        {"KMODD_BECAUSE": "dependency of sctp"},
        {"KMODD_BECAUSE": "softdep of sctp in x:1"},
    ],
)
def test_records_without_a_use_are_skipped(fields: dict[str, object]) -> None:
    assert read([record(**fields)]).uses == []


@pytest.mark.parametrize("writer", ["1000", None, "00", ["1000", "0"]])
def test_records_of_other_users_are_distrusted(writer: object) -> None:
    """journald accepts every field from any user; only _UID is its own."""
    found = read([record(_UID=writer)])
    assert (found.uses, found.distrusted) == ([], 1)


@pytest.mark.parametrize("line", ["x", "[]", "3", "{", "[" * 100_000])
def test_unreadable_lines_are_counted(line: str) -> None:
    found = read([line, record()])
    assert (len(found.uses), found.unreadable) == (1, 1)


def test_fields_in_the_forms_that_journalctl_gives_them() -> None:
    """journalctl(1): bytes that are no text as numbers, a field that repeats as a list, one too long as null."""
    (use,) = read([record(KMODD_REQUESTER_EXE=[47, 255], KMODD_ALIAS=["a", "b"], KMODD_PATTERN=None)]).uses
    assert (use.exe, use.request, use.pattern) == ("/\udcff", "a", "")
    assert read([record(KMODD_REQUESTER_EXE=[1, "x", 999])]).uses[0].exe == "\x01"


@pytest.mark.parametrize(
    ("uid", "container", "who"),
    [
        ("0", "no", "root"), ("999", "no", "service"), ("1000", "no", "user"), ("0", "yes", "container"),
        (None, None, "unknown"), ("", "no", "unknown"), ("-1", "yes", "unknown"), ("0", None, "root"),
    ],
)  # fmt: skip
def test_who_asked(uid: str | None, container: str | None, who: Who) -> None:
    (use,) = read([record(KMODD_REQUESTER_UID=uid, KMODD_REQUESTER_CONTAINER=container)]).uses
    assert use.who == who


# ── the program ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_from_a_file(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    file = tmp_path / "records"
    file.write_text(f"{record()}\n{record(_UID='1000')}\nnonsense\n")
    assert program.main(["suggest", "--from", str(file)]) == 0
    out, err = capfdbinary.readouterr()
    assert out.startswith(b"# Requests of the kernel in the journal: 1, from 2023-11-1")
    assert lines_of(out.decode()) == [
        "allow origin=request request=net-pf-38 uid=1000- container=no",
        "deny origin=request",
    ]
    assert b"1 record in kmodd's name" in err
    assert b"1 line" in err
    assert program.main(["suggest", "--from", str(tmp_path / "nowhere")]) == 1
    assert b"nowhere: No such file" in capfdbinary.readouterr().err


def test_an_empty_journal_is_reported(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    empty = os.open(os.devnull, os.O_RDONLY)
    kept = os.dup(0)
    os.dup2(empty, 0)
    try:
        assert program.main(["suggest", "--from", "-"]) == 1
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        os.close(empty)
    shown = capfdbinary.readouterr()
    assert shown.out == b""
    assert b"No kernel request that loaded a module is in these records" in shown.err


JOURNAL = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/journal /run/systemd/journald.conf.d /run/log/journal
cd /run/systemd/journald.conf.d
printf '%s\\n' '[Journal]' Audit=no ReadKMsg=no Storage=volatile ForwardToSyslog=no > x.conf
cd "$OLDPWD"
/usr/lib/systemd/systemd-journald &
journald=$!
trap 'kill $journald' EXIT
"$0" -c "$1"
journalctl --sync
"$0" -m kmodd.cli policy suggest --since 1h
"""
WRITERS = """
import os, time
from kmodd.host.journal import JournalSocket
from kmodd.planning.record import Record
for _ in range(3000):  # no event says that journald listens; this socket is its last
    if os.path.exists("/run/systemd/journal/io.systemd.journal"):
        break
    time.sleep(0.01)
def write(alias, **more):
    fields = {"KMODD_RESULT": "loaded", "KMODD_SOURCE": "request", "KMODD_ALIAS": alias, "KMODD_BECAUSE": "asked for"}
    journal = JournalSocket()
    journal.write(Record("6c3fd7e0c7e64ed3a8a4f3b0a8a1f101", 6, "Loaded", tuple({**fields, **more}.items())))
    assert journal.flush() is None
write("net-pf-38", KMODD_REQUESTER_UID="1000", KMODD_REQUESTER_CONTAINER="no", KMODD_REQUESTER_EXE="/bin/a\\nb")
write("fs-xfs")
if os.fork() == 0:
    os.setuid(65534)
    write("fs-evil")
    os._exit(0)
os.wait()
"""


@pytest.mark.root
def test_out_of_a_real_journal() -> None:
    """A journald of its own in a mount namespace; root's records count, a forged one of `nobody` does not."""
    command = ["unshare", "--mount", "bash", "-c", JOURNAL, sys.executable, WRITERS]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert lines_of(done.stdout) == [
        "allow origin=request request=net-pf-38 uid=1000- container=no",
        "allow origin=request request=fs-xfs",
        "deny origin=request",
    ]
    assert "/bin/a?b" in done.stdout


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["nonsense"], ["suggest", "x"]):
        assert program.main(argv) == 2
        assert "; see `kmodd policy" in capsys.readouterr().err
