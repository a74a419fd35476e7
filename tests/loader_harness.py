"""A loader in a thread of this process, with a kernel that is played."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from kmodd.errors import Where
from kmodd.loader import worker
from kmodd.loader.pool import Loader
from kmodd.loader.protocol import (
    InsmodRequest,
    InsmodRunRequest,
    OfferedRequest,
    ProbeRequest,
    ShellRequest,
)
from kmodd.loader.trusted_paths import Trusted
from kmodd.planning.reply import Reply
from tests.fakes import FakeKernel

WAIT = 30.0
"""Seconds that an answer may take; a hang is a failure, not a wait."""


class Served:
    """A loader in a thread, and the daemon's lane to it."""

    def __init__(self, kernel: FakeKernel, trusted: Trusted) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(WAIT)
        self.lane = Loader(ours)
        self.thread = threading.Thread(target=self._serve, args=(theirs, kernel, trusted))
        self.thread.start()
        assert self.lane.receive() is None
        assert self.lane.pid

    @staticmethod
    def _serve(connection: socket.socket, kernel: FakeKernel, trusted: Trusted) -> None:
        with connection:
            worker.serve(connection.fileno(), kernel, trusted)

    def close(self) -> None:
        self.lane.close()
        self.thread.join(WAIT)
        assert not self.thread.is_alive()

    def do(self, call: InsmodRequest | OfferedRequest | ShellRequest | ProbeRequest) -> Reply:
        assert self.lane.start(InsmodRunRequest((call,), ("a",)) if isinstance(call, InsmodRequest) else call)
        answer = self.lane.receive()
        assert isinstance(answer, Reply)
        return answer


def module(folder: Path, name: str, content: bytes = b"\x7fELF module") -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


def install_line(folder: Path, command: str) -> ShellRequest:
    conf = folder / "a.conf"
    conf.write_text(f"# first\ninstall foo {command}\n")
    return ShellRequest("foo", Where("/etc/modprobe.d/a.conf", 2), str(conf), "x=1 y=2")
