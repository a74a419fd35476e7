"""`kmodd command`, as systemd starts it for a connection."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kmodd.cli import command
from kmodd.errors import Where
from kmodd.loader.protocol import MAX_STEP, CommandRequest, decode_reply, encode_request

ROOT = Path(__file__).resolve().parents[3]


def test_it_serves_the_connection_that_systemd_has_passed() -> None:
    """sd_listen_fds(3): descriptor 3, for the process LISTEN_PID. A file that is not there is an answer too."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        ours.settimeout(60)
        with theirs:
            passed = os.dup2(theirs.fileno(), 100)
        script = f"LISTEN_FDS=1 LISTEN_PID=$$ exec {sys.executable} -m kmodd.cli command 3<&{passed}"
        with subprocess.Popen(["/bin/bash", "-c", script], cwd=ROOT, pass_fds=[passed]) as process:
            os.close(passed)
            assert int(ours.recv(MAX_STEP)) == process.pid
            file = "/etc/modprobe.d/kmodd-test-none.conf"
            ours.send(encode_request(CommandRequest("install", "foo", Where(file, 1), file)))
            reply = decode_reply(ours.recv(MAX_STEP))
            assert (reply.errno, reply.detail) == (errno.ENOENT, f"{file}: No such file or directory")
            ours.shutdown(socket.SHUT_WR)  # as the daemon closes the connection, with the reply read
            assert process.wait(60) == 0
        assert ours.recv(MAX_STEP) == b""


@pytest.mark.parametrize("words", [[], ["--fd", "3"]])
def test_without_a_connection_of_systemd_it_shows_its_usage(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(words) == 2
    assert capsys.readouterr().err.startswith("usage: kmodd command\n")
