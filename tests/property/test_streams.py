"""Every verb with every kind of broken standard stream: status of the work, one line for lost output, no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kmodd.cli.__main__ import TOOLS, VERBS
from tests import program, rootfs
from tests.journal_files import record, write_journal
from tests.rootfs import RELEASE, Said

pytestmark = [pytest.mark.property, pytest.mark.timeout(120)]

COMMANDS = {
    "modprobe": (
        "-D --root ROOT -S REL ext4", "-c --root ROOT -S REL", "--no-daemon -a -d ROOT -S REL nosuch aes",
        "--no-daemon -v -d ROOT -S REL -C ROOT/command.conf command", "",
    ),
    "insmod": ("ROOT/nowhere.ko", ""),
    "rmmod": ("--root ROOT nosuch", ""),
    "lsmod": ("--root ROOT", "--json --root ROOT", "operand"),
    "modinfo": ("--root ROOT -k REL unix", "--root ROOT -k REL nosuch", ""),
    "depmod": ("--root ROOT REL", "-v --root ROOT REL", "-n --root ROOT REL", "bad"),
    "run": ("operand",),
    "status": ("--socket ROOT/none",),
    "reload": ("--socket ROOT/none",),
    "settle": ("--socket ROOT/none",),
    "metrics": ("--socket ROOT/none",),
    "timeline": ("--root ROOT", "--text --root ROOT", "--json --root ROOT", "-b -9 --root ROOT"),
    "blame": ("--root ROOT", "--json --root ROOT", "-b -9 --root ROOT"),
    "monitor": ("--socket ROOT/none", "--json --socket ROOT/none"),
    "wait": ("--socket ROOT/none nosuch", "--json --socket ROOT/none /sys/nosuch"),
    "why": ("--root ROOT ext4", "--root ROOT --json ext4 nosuch 1", "--root ROOT -b -9 ext4", ""),
    "history": ("--root ROOT", "--json --root ROOT", "-b -9 --root ROOT", "--root ROOT --module nosuch"),
    "explain": ("--root ROOT --kernel REL ext4 nosuch", ""),
    "lookup": ("--root ROOT --kernel REL ext4", "--root ROOT --kernel REL"),
    "devices": ("--root ROOT --kernel REL",),
    "whatif": ("--kernel REL --root ROOT", "--kernel REL --json --root ROOT", "--kernel none --root ROOT", ""),
    "record": ("--root ROOT", "--serials --root ROOT", "operand"),
    "lint": ("--root ROOT --kernel REL",),
    "check": tuple(f"--root ROOT --kernel REL {more}" for more in ("", "--benchmark cis", "--benchmark nosuch --json")),
    "verify": ("--root ROOT", "--json --root ROOT", "operand"),
    "profile": ("make --root ROOT", "make --force --root ROOT", "operand"),
    "deny": ("--dry-run --root ROOT --kernel REL vfat", "--dry-run --root ROOT --kernel REL nosuch", ""),
    "allow": ("--dry-run --root ROOT --kernel REL vfat", ""),
    "seal": ("--socket ROOT/none",),
    "policy": ("check --root ROOT", "operand"),
    "convert-config": ("ROOT/modules.conf", "-"),
    "static-nodes": ("--root ROOT --kernel REL",),
    "complete": ("requests", "operand"),
    "loader": ("operand",),
    "command": ("operand",),
    "requester": ("operand",),
    "request": (),  # becomes modprobe; tests/unit/install has its tests
}  # fmt: skip
"""Verb → its command lines here; each has `--help` too."""

INCIDENTAL = ("modprobe --no-daemon", "depmod -v")
"""Commands that do more than print: their status is that of the work if the caller closed standard output."""

LOST = {
    ">&-": b"Bad file descriptor",
    "1</dev/null": b"Bad file descriptor",
    ">/dev/full": b"No space left on device",
    "|": b"",
}
"""Standard output that cannot be written → reason in the message; empty: none, as the reader wants no more."""

BROKEN = (*LOST, "<&-", "2>&-", "2>/dev/full", "<&- >&- 2>&-", ">/dev/full 2>/dev/full")

READS = {"lookup --root ROOT --kernel REL": 0, "convert-config -": 0, "policy suggest --from -": 1}
"""Commands that read standard input → status where it is empty: without a request on record, no rule is suggested."""

INTERNAL = ("loader", "command", "request", "requester")
"""Verbs without `--help`."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = rootfs.build("names", tmp_path_factory.mktemp("streams"))
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/modules").write_text("ext4 16384 0 - Live 0x0\n")
    (root / "command.conf").write_text("install command true\n")
    (root / "modules.conf").write_text("alias eth0 e100\nnonsense\n")
    write_journal(root / "var/log/journal", [record("f101", KMODD_RESULT="loaded", KMODD_MODULE="\x1b[2J\u202e")])
    return root


def test_every_verb_is_here() -> None:
    assert set(COMMANDS) == {*VERBS, *TOOLS}


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_broken_stream_changes_nothing_but_what_is_lost(verb: str, root: Path) -> None:
    lines = [(line, BROKEN) for line in COMMANDS[verb]]
    if verb not in INTERNAL:
        lines.append(("--help", (">/dev/full",)))
    for line, every in lines:
        words = [verb, *line.replace("ROOT", str(root)).replace("REL", RELEASE).split()]
        is_incidental = f"{verb} {line}".startswith(INCIDENTAL)
        normal = program.run(words)
        for streams in every:
            if streams.startswith("<&-") and f"{verb} {line}" in READS:
                continue
            broken = program.run(words, streams)
            assert broken == expected(normal, streams, broken, is_incidental=is_incidental), (words, streams, normal)


def expected(normal: Said, streams: str, broken: Said, *, is_incidental: bool) -> Said:
    """What a run should be, by the one with good streams."""
    stdout = next((words for words in streams.split() if words in LOST), "")
    is_lost = bool(stdout and normal.out) and not (stdout == ">&-" and is_incidental)
    err = b"" if "2>" in streams else normal.err
    if is_lost and LOST[stdout] and "2>" not in streams:
        line = broken.err.splitlines(keepends=True)[-1] if broken.err else b""
        assert line.endswith(b": Failed to write standard output: %s\n" % LOST[stdout]), line
        err += line
    return Said(b"" if stdout else normal.out, err, normal.status or is_lost)


@pytest.mark.parametrize("words", READS)
def test_standard_input_that_cannot_be_read_is_one_line(words: str, root: Path) -> None:
    argv = words.replace("ROOT", str(root)).replace("REL", RELEASE).split()
    empty = program.run(argv, stdin=b"")
    assert (empty.status, b"descriptor" in empty.err) == (READS[words], False), "the control"
    for streams, why in (("<&-", b"Bad file descriptor"), ("0>/dev/null", b"Bad file descriptor")):
        said = program.run(argv, streams)
        assert (said.status, said.out, said.err.count(b"\n")) == (1, b"", 1), said
        assert said.err.endswith(why + b"\n")


def test_python_alone_ends_in_a_traceback() -> None:
    """The control: what every verb would do with its own print()."""
    words = [sys.executable, "-c", "import sys; sys.stdout.write('x')"]
    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *words], capture_output=True, check=False)
    assert (done.returncode, b"Traceback" in done.stderr) == (1, True)


def test_no_file_becomes_a_standard_stream(root: Path) -> None:
    """With all three closed, the first file that is opened would be descriptor 0, and messages would go into it."""
    before = (root / "command.conf").read_bytes()
    said = program.run(
        ["modprobe", "--no-daemon", "--root", str(root), "-S", RELEASE, "-C", f"{root}/command.conf", "nosuch"],
        "<&- >&- 2>&-",
    )
    assert said.status == 1
    assert (root / "command.conf").read_bytes() == before


SURROUNDINGS = ({"COLUMNS": "40"}, {"COLUMNS": "0"}, {"NO_COLOR": "1"}, {"TERM": "dumb"}, {"LC_ALL": "C", "LANG": "C"})


@pytest.mark.parametrize("verb", [verb for verb in COMMANDS if verb not in INTERNAL])
def test_the_surroundings_change_no_status(verb: str, root: Path) -> None:
    """Nor the output, where it is no terminal; the help has another width."""
    for line in (*COMMANDS[verb][:1], "--help"):
        words = [verb, *line.replace("ROOT", str(root)).replace("REL", RELEASE).split()]
        normal = program.run(words)
        for environment in SURROUNDINGS:
            said = program.run(words, environment=environment)
            assert b"Traceback" not in said.err
            assert b"\x1b" not in said.out + said.err
            if line == "--help":
                assert said.status == normal.status, (words, environment)
            else:
                assert said == normal, (words, environment)


HOSTILE = "a\x1b]0;x\x07\x1b[31m\n\u202eb"
"""A name that would set the title and the colour of a terminal, end its line, and turn the direction of text."""


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A machine with a device of that name, which no module matches, and one with a module that is not loaded."""
    folder = rootfs.build("names", tmp_path)
    (folder / "sys/bus/pci/devices").mkdir(parents=True)
    for name, alias in ((HOSTILE, f"pci:{HOSTILE}"), ("0000:00:02.0", "fs-ext4")):
        (folder / "sys/devices" / name).mkdir(parents=True)
        (folder / "sys/devices" / name / "modalias").write_text(f"{alias}\n")
        (folder / "sys/bus/pci/devices" / name).symlink_to(f"../../../devices/{name}")
    return folder


@pytest.mark.parametrize("environment", [{"TERM": "xterm"}, {"TERM": "xterm", "COLUMNS": "40"}, {"TERM": "dumb"}])
def test_a_name_cannot_act_on_a_terminal(hostile: Path, environment: dict[str, str]) -> None:
    base = ["--root", str(hostile), "--kernel", RELEASE]
    for words in (
        ["devices", *base], ["explain", *base, HOSTILE, f"/sys/devices/{HOSTILE}", f"pci:{HOSTILE}"],
        ["explain", f"--{HOSTILE}"], [HOSTILE], ["help", HOSTILE], ["devices", HOSTILE], ["wait", "-t", HOSTILE, "x"],
        ["policy", HOSTILE], ["wait", "--socket", f"{hostile}/{HOSTILE}", HOSTILE],
    ):  # fmt: skip
        shown = program.on_terminal(words, environment).decode()
        for code in ("\x1b[0;1;31m", "\x1b[0;1;33m", "\x1b[0;32m", "\x1b[0;1m", "\x1b[0m"):
            shown = shown.replace(code, "")
        assert shown.strip(), words
        assert [char for char in shown if char != "\n" and not char.isprintable()] == [], words
        assert "Traceback" not in shown


def test_colours_are_on_a_terminal_only(hostile: Path) -> None:
    words = ["devices", "--root", str(hostile), "--kernel", RELEASE]
    assert b"\x1b[0;1;31mpci 0000:00:02.0" in program.on_terminal(words, {"TERM": "xterm"})
    for environment in ({"TERM": "xterm", "NO_COLOR": "1"}, {"TERM": "dumb"}, {"TERM": ""}):
        assert b"\x1b" not in program.on_terminal(words, environment)
    assert b"\x1b" not in program.run(words, environment={"TERM": "xterm"}).out


def test_a_table_fits_the_terminal(hostile: Path) -> None:
    words = ["devices", "--root", str(hostile), "--kernel", RELEASE]
    wide, narrow = (program.on_terminal(words, {"TERM": "dumb", "COLUMNS": columns}) for columns in ("200", "60"))
    assert max(map(len, wide.decode().splitlines())) > 60
    assert max(map(len, narrow.decode().splitlines())) <= 60
