"""The daemon's connection to the process that may look into others: `Requesters` (see process_reader.py).

Under systemd that process is an instance of kmodd-requester@.service, started by connecting to that unit's socket.
Without systemd the daemon starts it before it gives up its own capabilities.
"""

from __future__ import annotations

import math
import os
import select
import socket
import sys
import time

from kmodd.host.paths import REQUESTER_SOCKET
from kmodd.host.process_reader import MAX_BYTES, number_of, question, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from kmodd.kernel.requester import Requester

ENOUGH: Final = 0.005
"""Seconds that every question may take while the process answers. The kernel runs at most 50 helpers at a time."""
WAIT: Final = 0.5
"""Seconds beyond that for which questions wait in all, in each second: helpers give up after 2 s (cli/request.py)."""
SILENCE: Final = 3.0
"""Seconds without a packet that is due, after which questions do not wait for the process."""
START: Final = 10.0
"""The same for its first packet: a boot has other programs to start, in an emulated machine for several seconds."""
FIRST_PAUSE: Final = 1.0
"""Seconds between the second and third attempt to start it; the pause doubles while none of them answers."""
LAST_PAUSE: Final = 64.0
_INHERITED: Final = 3
"""Descriptor of the connection in a process that the daemon has started."""


class Requesters:
    """Asks for the process of a thread; nothing is known while there is no process to ask."""

    def __init__(self, connect: Callable[[], socket.socket], *, restarts: bool = True) -> None:
        """Have the process start, without waiting for it. A failure is left to `problem`, and tried again later.

        connect: returns a SOCK_SEQPACKET connection to a process that runs `serve`, or raises OSError.
        restarts: whether it can be called again.
        """
        self._connect, self._restarts = connect, restarts
        self._epoll = select.epoll()
        self._connection: socket.socket | None = None
        self._is_ready = False
        self._number = 0
        """Of the last question on this connection; 0 stands for the start."""
        self._owed_since: float | None = None
        """When the packet that is due was asked for, or the one before it came; None: none is due."""
        self._why = ""
        self._retry_at = self._pause = 0.0
        self._second = self._left = 0.0
        """When the second of WAIT began, and what is left of it."""
        self._open()

    @classmethod
    def of_systemd(cls) -> Requesters:
        """Have systemd start it."""
        return cls(_connect_to_unit)

    @classmethod
    def of_ours(cls) -> Requesters:
        """Start it as a child, once: it has capabilities that this process is about to give up."""
        return cls(_start, restarts=False)

    def fileno(self) -> int:
        """Return an epoll descriptor, readable when `receive` has something to do."""
        return self._epoll.fileno()

    @property
    def problem(self) -> str:
        """Why nothing is known now, as a message; empty: the process answers, or has been starting for a moment."""
        return f"Failed to ask the reader of /proc: {self._why}; requesters are unknown" if self._why else ""

    def receive(self) -> None:
        """Take what the process has sent, without waiting: late answers, or its end, when it is started again."""
        self._answer(-1, 0.0)
        self._open()

    def check(self, now: float) -> str:
        """Start the process again if that is due; return `problem`. now: monotonic, seconds."""
        if self._is_silent(now):
            if self._is_ready and self._restarts:
                self._lose("it does not answer")
            else:
                self._why = "it does not answer" if self._is_ready else "it does not start"
        self._open()
        return self.problem

    def deadline(self, now: float) -> float | None:
        """When `check` has something to do (monotonic, seconds); None: not before the process is asked or ends."""
        if self._connection is None:
            return self._retry_at
        return None if self._owed_since is None or self._is_silent(now) else self._owed_since + self._patience

    def requester_of(self, tid: int, asked_ns: int, until: float) -> Requester | None:
        """Return what `process.requester_of` returns in that process; None also if it does not answer. Never raises."""
        for _ in range(2):  # once more if the process has ended
            self._open()
            if (answer := self._ask(tid, asked_ns, until)) is not None:
                return unpack(answer)
            if self._connection is not None:
                break
        return None

    def close(self) -> None:
        """End the process, for good."""
        self._lose("")
        self._retry_at = math.inf
        self._epoll.close()

    def _open(self) -> None:
        """Start the process if there is none and a pause is over."""
        now = time.monotonic()
        if self._connection is not None or now < self._retry_at:
            return
        self._retry_at = now + self._pause if self._restarts else math.inf
        self._pause = min(max(2 * self._pause, FIRST_PAUSE), LAST_PAUSE)
        try:
            self._connection = self._connect()
        except OSError as error:
            self._why = error.strerror or str(error)
            return
        self._connection.setblocking(False)
        self._epoll.register(self._connection, select.EPOLLIN)
        self._number, self._owed_since = 0, now

    def _lose(self, why: str) -> None:
        """Close the connection: the process has ended, or ends then."""
        if self._connection is not None:
            self._epoll.unregister(self._connection)
            self._connection.close()
        self._connection, self._is_ready, self._owed_since, self._why = None, False, None, why

    @property
    def _patience(self) -> float:
        return SILENCE if self._is_ready else START

    def _is_silent(self, now: float) -> bool:
        return self._owed_since is not None and now >= self._owed_since + self._patience

    def _ask(self, tid: int, asked_ns: int, until: float) -> bytes | None:
        """Return the answer; None: there is none in time, or no process."""
        if not self._is_ready and self._wait(0, 0.0, 0.0) is None:
            return None
        if self._owed_since is not None:
            self._answer(-1, 0.0)
        is_late = self._owed_since is not None
        if self._connection is None or (is_late and not self._time_left(time.monotonic())):
            return None  # a further question would only delay the answers to later ones
        try:
            self._connection.send(question(self._number + 1, tid, asked_ns, until))
        except BlockingIOError:
            return None
        except OSError:
            self._lose("it has ended")
            return None
        self._number += 1
        if is_late:
            return self._wait(self._number, until, 0.0)
        self._owed_since = time.monotonic()
        return self._wait(self._number, until, ENOUGH)

    def _wait(self, number: int, until: float, enough: float) -> bytes | None:
        """Return the answer to a question. Waits `enough` seconds after `until`, and what is left of WAIT."""
        now = time.monotonic()
        begin = max(now, until) + enough
        answer = self._answer(number, begin + self._time_left(now))
        self._left = max(0.0, self._left - max(0.0, time.monotonic() - begin))
        return answer

    def _time_left(self, now: float) -> float:
        """Return what is left of WAIT in this second; nothing for a silent process."""
        if now >= self._second + 1.0:
            self._second, self._left = now, WAIT
        return 0.0 if self._is_silent(now) else self._left

    def _answer(self, number: int, deadline: float) -> bytes | None:
        """Take packets up to the answer to a question; those to earlier ones are too late.

        deadline: monotonic, seconds. Returns None if there is no answer by then, or the process has ended.
        """
        while packet := self._receive(deadline):
            try:
                answered, answer = number_of(packet)
            except ValueError:
                self._lose("its answer is invalid")
                return None
            self._is_ready, self._why = True, ""
            self._owed_since = None if answered == self._number else time.monotonic()
            if answered > 0:
                self._retry_at = self._pause = 0.0 if self._restarts else math.inf
            if answered == number:
                return answer
        return None

    def _receive(self, deadline: float) -> bytes:
        """Return the next packet; empty: there is none by then, or the process has ended."""
        if self._connection is None:
            return b""
        self._epoll.poll(max(0.0, deadline - time.monotonic()))
        try:
            packet = self._connection.recv(MAX_BYTES)
        except BlockingIOError:
            return b""
        except OSError:
            packet = b""
        if not packet:
            self._lose("it has ended")
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
