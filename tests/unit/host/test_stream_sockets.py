"""A process that has forbidden itself stream sockets of the Unix family: what is refused, and what goes on working."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kmodd.host import stream_sockets

ROOT = Path(__file__).parents[3]

TRIES = """
import errno, os, socket, sys
from kmodd.host import stream_sockets

listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
listening.bind(sys.argv[1])
listening.listen()
if sys.argv[2] == "forbid":
    import ctypes
    ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS, as the unit does
    assert not stream_sockets.forbid()

def attempt(what):
    try:
        what()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "-"

raw = lambda kind, family=socket.AF_UNIX: lambda: socket.socket(family, kind).close()
answers = [
    attempt(raw(socket.SOCK_STREAM)),
    attempt(raw(socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)),
    attempt(raw(socket.SOCK_SEQPACKET)),
    attempt(raw(socket.SOCK_DGRAM)),
    attempt(raw(socket.SOCK_STREAM, socket.AF_INET)),
    attempt(lambda: [each.close() for each in socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)]),
]
child = os.fork()
if not child:
    os._exit(attempt(raw(socket.SOCK_STREAM)) != "-")
answers.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
listening.setblocking(False)
answers.append(attempt(listening.accept))
print(*answers)
"""


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("forbid", "EPERM EPERM - - - - 1 EAGAIN"), ("control", "- - - - - - 0 EAGAIN")],
)
def test_only_new_stream_sockets_are_refused(tmp_path: Path, mode: str, expected: str) -> None:
    """Also in children; a socket that listens already goes on accepting."""
    command = [sys.executable, "-c", TRIES, str(tmp_path / "socket"), mode]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="only x86_64 has another ABI with this architecture")
def test_the_other_abi_is_refused() -> None:
    """x32's numbers: 0x40000000 + 41 is its socket(2)."""
    script = (
        "import ctypes; from kmodd.host import stream_sockets; libc = ctypes.CDLL(None, use_errno=True); "
        "libc.prctl(38, 1, 0, 0, 0); before = libc.syscall(0x40000000 + 41, 1, 1, 0), ctypes.get_errno(); "
        "stream_sockets.forbid(); print(libc.syscall(0x40000000 + 41, 1, 1, 0), ctypes.get_errno())"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["-1", "1"]


def test_a_machine_of_unknown_numbers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon logs the sentence as a warning, and goes on."""
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "x", "6.1", "#1", "mips64")))
    assert "Function not implemented; the daemon can still create them" in stream_sockets.forbid()


def test_a_python_of_32_bits_forbids_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's machine is x86_64 all the same; the filter would refuse the numbers of 32 bits, exit_group too."""
    monkeypatch.setattr("kmodd.host.stream_sockets.struct.calcsize", lambda what: 4)
    assert stream_sockets.forbid().startswith("Failed to forbid new stream sockets: Function not implemented")
    socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).close()
