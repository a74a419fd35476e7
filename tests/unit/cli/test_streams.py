"""Standard streams of a program: status of the work, syslog for standard error, readers that are slow or gone."""

from __future__ import annotations

import fcntl
import os
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
