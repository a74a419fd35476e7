"""The daemon's connections to its loaders and command runners: `Loader` for one process, `LoaderPool` starts them.

This runs in the daemon, without CAP_SYS_MODULE. It never kills a loader: it closes the connection, and the loader ends
once its request is done.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time

from kmodd.dataclass import dataclass
from kmodd.host.paths import COMMAND_SOCKET
from kmodd.loader.kernel_stack import StackQuestion
from kmodd.loader.protocol import (
    MAX_STEP,
    CommandRequest,
    LoaderRequest,
    OfferedRequest,
    StopRequest,
    decode_reply,
    encode_request,
)
from kmodd.loader.spawner import Spawner
from kmodd.planning.reply import Reply

STILLBORN_PAUSE = 5.0
"""Seconds without new spare loaders after one died before it sent its pid."""


@dataclass(frozen=True, slots=True)
class Died:
    """The loader ended without a reply: it was killed, by a signal or by an oops."""

    begun: bool = True
    """Whether it may have started the request; False if it never read it."""


@dataclass(slots=True, eq=False)
class Loader:
    """The connection to one loader or command runner."""

    connection: socket.socket
    pid: int = 0
    """0 until the loader has sent it; SO_PEERCRED would give the daemon's own, which made the socket pair."""
    busy: bool = False
    """It has a request that it has not replied to at all."""
    stopped: bool = False
    """A StopRequest was sent after the current request."""
    _was_reset: bool = False
    """It has closed its end with data unread."""

    def fileno(self) -> int:
        """Return the descriptor of the connection."""
        return self.connection.fileno()

    def start(self, request: LoaderRequest | CommandRequest) -> bool:
        """Send a request. Return False if the loader is gone and has started nothing of it."""
        try:
            if isinstance(request, OfferedRequest):
                socket.send_fds(self.connection, [encode_request(request)], [request.offer])
            else:
                self.connection.send(encode_request(request))
        except (BrokenPipeError, ConnectionResetError):
            return False
        self.busy, self.stopped = True, False
        return True

    def stop(self) -> None:
        """Ask the loader to end its run after the current file. Raises nothing."""
        self.stopped = True
        with contextlib.suppress(OSError):
            self.connection.send(encode_request(StopRequest()))

    def receive(self) -> Reply | Died | None:
        """Return the next reply, or Died; None if there is no datagram yet, or it was the loader's pid."""
        try:
            datagram = self.connection.recv(MAX_STEP)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            self._was_reset = True
            return self.receive()  # the error comes before the datagrams that the peer had still sent
        if not datagram:
            # ECONNRESET (unix(7)): the peer closed with data unread; without a reply so far, the data is our request.
            return Died(begun=not (self._was_reset and self.busy and not self.stopped))
        try:
            if not self.pid:
                self.pid = int(datagram)
                return None
            reply = decode_reply(datagram)
        except ValueError:
            return Died()  # not a loader's datagram: the process cannot be used further
        self.busy = False
        return reply

    def close(self) -> None:
        """Close the connection. A loader that is in a module's init ends after it."""
        with contextlib.suppress(OSError):
            self.connection.close()


def loader_on(connection: socket.socket) -> Loader:
    """Return a Loader for an open connection, which becomes non-blocking."""
    connection.setblocking(False)
    return Loader(connection)


class LoaderPool:
    """The idle loaders, connected and ready for a request.

    A spare one serves a request from inside a module's init, and the next step after a crash, without delay.
    """

    def __init__(self, spawner: Spawner | None = None) -> None:
        """Use `spawner`; None: have systemd start one when it is needed."""
        self._spawner = spawner
        self._not_before = 0.0
        self.max_idle = 2
        """Number of idle loaders that are kept; more of them are closed when they are given back."""
        self.idle: list[Loader] = []

    def resize(self, count: int) -> None:
        """Keep at most `count` loaders in reserve, and let the others go."""
        self.max_idle = count
        while len(self.idle) > count:
            self.idle.pop().close()

    def get(self) -> Loader:
        """Return an idle loader, or a new one. Raises OSError as `open` does."""
        return self.idle.pop() if self.idle else self.open()

    def open(self) -> Loader:
        """Return a new loader. Raises OSError: there is no spawner, or its queue is full."""
        if self._spawner:
            try:
                return loader_on(self._spawner.connect())
            except (BrokenPipeError, ConnectionResetError):  # the spawner is gone
                if self._spawner.pid:
                    raise
                self._spawner.close()
                self._spawner = None
        self._spawner = Spawner.of_systemd()
        return loader_on(self._spawner.connect())

    def open_runner(self) -> Loader:
        """Return a new command runner, without waiting for it to start. Raises OSError: none can be started."""
        if self._spawner and self._spawner.pid:
            return loader_on(self._spawner.connect_runner())
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        connection.setblocking(False)  # a full queue is an error
        try:
            connection.connect(COMMAND_SOCKET)
        except OSError as error:
            connection.close()
            raise OSError(error.errno, error.strerror, COMMAND_SOCKET) from None
        return loader_on(connection)

    def ask_stack(self, pid: int) -> StackQuestion | None:
        """Ask for the kernel stack of the loader `pid`; return None if that is not possible."""
        with contextlib.suppress(OSError):
            return StackQuestion(pid, self._spawner if self._spawner and self._spawner.pid else None)
        return None

    def give_back(self, loader: Loader) -> None:
        """Return a loader that has finished its request; close it if enough are idle."""
        if len(self.idle) < self.max_idle:
            self.idle.append(loader)
        else:
            loader.close()

    def keep_spare(self, count: int = 1) -> None:
        """Start loaders until `count` are idle; fewer if none can be started now."""
        with contextlib.suppress(OSError):
            while len(self.idle) < count and time.monotonic() >= self._not_before:
                self.idle.append(self.open())

    def lost(self, loader: Loader) -> None:
        """Drop a loader that has ended."""
        if loader in self.idle:
            self.idle.remove(loader)
        if not loader.pid:
            # It failed to start, and the next one is likely to fail too: do not start one in every round.
            self._not_before = time.monotonic() + STILLBORN_PAUSE
        loader.close()

    def close(self) -> None:
        """Close the idle loaders and the connection to the spawner."""
        while self.idle:
            self.idle.pop().close()
        if self._spawner:
            self._spawner.close()


def reap() -> None:
    """Reap the children that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
