"""Standard streams of a program: status of the work, syslog for standard error, readers that are slow or gone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import socket
import subprocess
from pathlib import Path

import pytest

from tests import program, rootfs
from tests.rootfs import RELEASE

IN_NAMESPACE = """
mount --bind /dev/null $1/null && mount --rbind $1 /dev && shift && exec "$@"
"""
"""A /dev that has nothing but `null`, and `log` as a link to the test's socket."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = rootfs.build("names", tmp_path / "root")
    (root / "t.conf").write_text(f"install command touch {root}/ran\nnonsense\n")
    return root


def modprobe(root: Path, *words: str) -> list[str]:
    return ["modprobe", "--no-daemon", "-d", str(root), "-S", RELEASE, "-C", f"{root}/t.conf", *words]


def test_a_message_that_cannot_be_written_does_not_end_the_work(root: Path) -> None:
    """The kernel believes only status 0; the invalid line of the configuration has nowhere to go."""
    said = program.run(modprobe(root, "-q", "--", "command"), "<&- >&- 2>&-")
    assert said.status == 0
    assert (root / "ran").exists()
    assert b"nonsense" in program.run(modprobe(root, "-q", "--", "command")).err, "the control: there is a message"


def test_all_names_are_handled_without_standard_error(root: Path) -> None:
    words = modprobe(root, "-a", "-n", "-v", "nosuch", "ext4")
    assert b"ext4.ko" in program.run(words, "2>&-").out


@pytest.mark.root
def test_messages_go_to_syslog_if_standard_error_is_closed(root: Path, tmp_path: Path) -> None:
    device = tmp_path / "dev"
    device.mkdir()
    (device / "null").touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(tmp_path / "log"))
        syslog.settimeout(10)
        (device / "log").symlink_to(tmp_path / "log")
        for streams, count in (("2>&-", 2), ("", 0)):
            inner = ["sh", "-c", f'exec "$@" {streams}', "sh", *program.command(*modprobe(root, "nosuch"))]
            command = ["unshare", "--mount", "sh", "-c", IN_NAMESPACE, "sh", str(device), *inner]
            done = subprocess.run(command, capture_output=True, check=False)
            assert (done.returncode, done.stdout) == (1, b"")
            got = [syslog.recv(4096) for _ in range(count)]
            if streams:
                assert re.fullmatch(rb"<27>.* modprobe: libkmod: ERROR: .* 'nonsense'\0?", got[0]), (
                    "LOG_DAEMON, LOG_ERR"
                )
                assert re.fullmatch(rb"<26>.* modprobe: FATAL: Module nosuch not found in .*", got[1]), "LOG_CRIT"
                assert done.stderr == b""
            else:
                assert b"modprobe: FATAL: Module nosuch not found" in done.stderr


def test_a_slow_reader_that_does_not_block_gets_everything(root: Path) -> None:
    """A parent may have set O_NONBLOCK on a pipe that it shares."""
    words = program.command("modprobe", "-c", "--root", str(root), "-S", RELEASE)
    expected = subprocess.run(words, capture_output=True, check=True).stdout
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, False)
    assert len(expected) > 4096
    with subprocess.Popen(words, stdout=writer) as process:
        os.close(writer)
        with open(reader, "rb", buffering=0) as file:
            got = b"".join(iter(lambda: file.read(100), b""))
        assert (process.wait(), got) == (0, expected)


def test_a_program_without_a_reader_ends_before_its_input(root: Path) -> None:
    """`kmodd lookup` reads until its input ends."""
    words = program.command("lookup", "--root", str(root), "--kernel", RELEASE)
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"ext4\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"ext4\text4\n", "the control: it answers"
        process.stdout.close()
        process.stdin.write(b"ext4\n")
        process.stdin.flush()
        assert process.wait(timeout=30) == 1


HOSTILE = "\x1b]0;title\x07\x1b[2J\x08\x7f\x9b2J\r"
ESCAPED = rb"\x1b]0;title\x07\x1b[2J\x08\x7f\x9b2J\x0d"


@pytest.mark.parametrize("verb", ["lookup", "explain", "modprobe -R", "modprobe -D", "lint"])
def test_control_characters_of_others_do_not_reach_a_terminal(root: Path, verb: str) -> None:
    """Names come from devices, files and users. Control: a pipe gets the bytes as they are."""
    (root / "etc/modprobe.d").mkdir(parents=True, exist_ok=True)
    (root / "etc/modprobe.d/z.conf").write_text(f"blacklist {HOSTILE[:-1]}\n")
    words = [*verb.split(), "--root", str(root), *(["-S", RELEASE] if "modprobe" in verb else ["--kernel", RELEASE])]
    command = [*program.command(*words), *([] if verb == "lint" else [HOSTILE])]
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL):
        os.close(theirs)
        parts = []
        with contextlib.suppress(OSError):  # EIO: the other side is closed and all it wrote is read
            while part := os.read(ours, 10000):
                parts.append(part)
    os.close(ours)
    shown = b"".join(parts).replace(b"\r\n", b"\n")
    assert not [byte for byte in shown if byte < 32 and byte not in b"\t\n"]
    assert b"[2J" in shown
    if verb not in ("explain", "lint"):  # these escape it for pipes, too
        assert ESCAPED in shown
        piped = subprocess.run(command, capture_output=True, check=False)
        assert HOSTILE.encode() in piped.stdout + piped.stderr
