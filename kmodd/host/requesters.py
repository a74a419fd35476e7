"""The daemon's connection to the process that may look into others: `Requesters` (see process_reader.py).

Under systemd that process is an instance of kmodd-requester@.service, started by connecting to that unit's socket.
Without systemd the daemon starts it before it gives up its own capabilities.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import time

from kmodd.host.paths import REQUESTER_SOCKET
from kmodd.host.process_reader import MAX_BYTES, READY, question, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from kmodd.kernel.requester import Requester

START_LIMIT: Final = 3.0
"""Seconds after its start that questions wait for the process: an enforced policy may refuse an unknown one."""
ANSWER_LIMIT: Final = 1.0
"""Seconds, more than any answer takes, after which the process counts as lost."""
RETRY: Final = 1.0
"""Seconds between two attempts to start it."""
_INHERITED: Final = 3
"""Descriptor of the connection in a process that the daemon has started."""


class Requesters:
    """Asks for the process of a thread; nothing is known while there is no process to ask."""

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        """Have the process start, without waiting for it. A failure is left to `check`, and tried again later.

        connect: returns a SOCK_SEQPACKET connection to a process that runs `serve`, or raises OSError.
        """
        self._connect = connect
        self._connection: socket.socket | None = None
        self._is_ready = False
        self._tried = 0.0
        with contextlib.suppress(OSError):
            self._open()

    @classmethod
    def of_systemd(cls) -> Requesters:
        """Have systemd start it."""
        return cls(_connect_to_unit)

    @classmethod
    def of_ours(cls) -> Requesters:
        """Start it as a child, once: it has capabilities that this process is about to give up."""
        first = [_start()]

        def connect() -> socket.socket:
            if not first:
                raise ConnectionError("the process that reads /proc has ended")
            return first.pop()

        return cls(connect)

    def check(self) -> None:
        """Raise OSError if there is no process to ask."""
        if self._connection is None:
            self._open()

    def requester_of(self, tid: int, asked_ns: int, until: float) -> Requester | None:
        """Return what `process.requester_of` returns in that process; None also if it does not answer. Never raises."""
        now = time.monotonic()
        try:
            if self._connection is None:
                if now < self._tried + RETRY:
                    return None
                self._open()
            if not self._has_started():
                return None
            self._socket().send(question(tid, asked_ns, until))
            return unpack(self._receive(max(until, now) + ANSWER_LIMIT))
        except OSError:
            self.close()  # a late answer would be taken for that to the next question
            return None

    def close(self) -> None:
        """End the process."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._is_ready = None, False

    def _open(self) -> None:
        self._tried = time.monotonic()
        self._connection = self._connect()
        self._connection.setblocking(False)

    def _has_started(self) -> bool:
        """Return whether the process answers, after a wait if it was started lately. Raises OSError: it has ended."""
        if not self._is_ready:
            with contextlib.suppress(BlockingIOError):
                self._is_ready = self._receive(self._tried + START_LIMIT) == READY
        return self._is_ready

    def _socket(self) -> socket.socket:
        if self._connection is None:
            raise ConnectionError
        return self._connection

    def _receive(self, deadline: float) -> bytes:
        """Return the next packet. deadline: monotonic, seconds. Raises OSError: there is none, or the end."""
        connection = self._socket()
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not (packet := connection.recv(MAX_BYTES)):
            raise ConnectionError
        return packet


def _connect_to_unit() -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        connection.connect(REQUESTER_SOCKET)
    except OSError:
        connection.close()
        raise
    return connection


def _start() -> socket.socket:
    """Start a child in a new session, as the spawner is (loader/spawner.py), and return the connection to it."""
    connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    with theirs:
        os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {package!r}); "
             "from kmodd.cli.requester import main; sys.exit(main(sys.argv[1:]))", "--fd", str(_INHERITED)],
            dict(os.environ),
            file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), _INHERITED)],
            setsid=True,
        )  # fmt: skip
    return connection
