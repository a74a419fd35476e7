"""A loader in a thread of this process, with a kernel that is played, and command runners in processes."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from kmodd.errors import Where
from kmodd.host.journal import Journal
from kmodd.loader import command_runner, worker
from kmodd.loader.pool import Loader
from kmodd.loader.protocol import CommandRequest, InsmodRequest, InsmodRunRequest, OfferedRequest, ProbeRequest
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

    def do(self, call: InsmodRequest | OfferedRequest | ProbeRequest) -> Reply:
        assert self.lane.start(InsmodRunRequest((call,), ("a",)) if isinstance(call, InsmodRequest) else call)
        answer = self.lane.receive()
        assert isinstance(answer, Reply)
        return answer


class Runner:
    """A command runner in a process of its own, and the daemon's connection to it."""

    def __init__(self, trusted: Trusted, journal: Callable[[], Journal] | None = None) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(WAIT)
        self.lane = Loader(ours)
        self.pid = os.fork()
        if not self.pid:
            try:
                ours.close()
                command_runner.serve(theirs.detach(), trusted, journal)
            finally:
                os._exit(0)
        theirs.close()
        assert self.lane.receive() is None

    def do(self, call: CommandRequest) -> Reply:
        """Have a command run, and return the reply."""
        assert self.lane.start(call)
        answer = self.lane.receive()
        assert isinstance(answer, Reply)
        return answer

    def close(self) -> None:
        """Close the connection, as the daemon does with the reply or at its end."""
        self.lane.close()

    def end(self) -> int:
        """Close the connection, and wait for the end of the process and all that its command has left."""
        self.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def run_command(trusted: Trusted, call: CommandRequest) -> Reply:
    """Have a command run by a runner of its own, and return the reply."""
    runner = Runner(trusted)
    try:
        return runner.do(call)
    finally:
        runner.end()


def module(folder: Path, name: str, content: bytes = b"\x7fELF module") -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


def install_line(root: Path, command: str) -> CommandRequest:
    """An install line of /etc/modprobe.d/a.conf below `root`."""
    conf = root / "etc/modprobe.d/a.conf"
    conf.parent.mkdir(parents=True, exist_ok=True)
    conf.write_text(f"# first\ninstall foo {command}\n")
    return CommandRequest("install", "foo", Where("/etc/modprobe.d/a.conf", 2), str(conf))
