"""The daemon's side of the loaders: a `Loader` hands one call after the other to one loader process.

The spawner forks them. A loader is never killed from here: its connection is closed, and it ends when it is idle.
"""

from __future__ import annotations

import contextlib
import os
import time

from kmodd.dataclass import dataclass
from kmodd.loader.actions import Reply
from kmodd.loader.kernel_stack import StackQuestion
from kmodd.loader.protocol import MAX_STEP, LoaderRequest, StopRequest, decode_reply, encode_request
from kmodd.loader.spawner import Spawner

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

STILLBORN_PAUSE = 5.0
"""Seconds before another spare is started after a loader that died at birth."""


@dataclass(frozen=True, slots=True)
class Died:
    """The loader is gone without an answer: it was killed, or an oops took it along."""

    begun: bool = True
    """False: it had not even read the call."""


@dataclass(slots=True, eq=False)
class Loader:
    """One loader process, and whether a call is with it that it has not answered at all."""

    connection: socket.socket
    pid: int = 0
    """0 until the loader has said it; the peer's credentials would name ourselves."""
    busy: bool = False
    stopped: bool = False
    """It was told to end its run."""
    _was_reset: bool = False
    """It has closed its end with something of ours unread."""

    def fileno(self) -> int:
        """For select."""
        return self.connection.fileno()

    def start(self, call: LoaderRequest) -> bool:
        """Hand over one call, or one run of files. False: the loader is gone, and nothing of it was begun."""
        try:
            self.connection.send(encode_request(call))
        except (BrokenPipeError, ConnectionResetError):
            return False
        self.busy, self.stopped = True, False
        return True

    def stop(self) -> None:
        """Have the run under way end after the present file; raises nothing."""
        self.stopped = True
        with contextlib.suppress(OSError):
            self.connection.send(encode_request(StopRequest()))

    def receive(self) -> Reply | Died | None:
        """What came from the loader; None: nothing that ends a call (its greeting, or no datagram yet)."""
        try:
            datagram = self.connection.recv(MAX_STEP)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            self._was_reset = True
            return self.receive()  # it is told before what the peer had said still
        if not datagram:
            # unix(7): the peer has closed with data unread, and if nothing was answered that is our call.
            return Died(begun=not (self._was_reset and self.busy and not self.stopped))
        try:
            if not self.pid:
                self.pid = int(datagram)
                return None
            reply = decode_reply(datagram)
        except ValueError:
            return Died()  # whatever this is, it is no loader that one could go on with
        self.busy = False
        return reply

    def close(self) -> None:
        """Let the loader go; one that is in a module's init ends after it."""
        with contextlib.suppress(OSError):
            self.connection.close()


def loader_on(connection: socket.socket) -> Loader:
    """The lane of a loader by its connection."""
    connection.setblocking(False)
    return Loader(connection)


class LoaderPool:
    """The loaders that are at hand: started, connected, and not at work.

    With one in reserve a request from inside a module's init, and the line after a crash, go on at once.
    """

    def __init__(self, spawner: Spawner | None = None) -> None:
        """`spawner` None: one of systemd's is asked for when it is needed."""
        self._spawner = spawner
        self._not_before = 0.0
        self.max_idle = 2
        """As many are kept though nothing is to be done; the others of a burst are let go."""
        self.idle: list[Loader] = []

    def get(self) -> Loader:
        """One at hand, or a new one. Raises OSError where there is no way to a loader."""
        return self.idle.pop() if self.idle else self.open()

    def open(self) -> Loader:
        """A new one. Raises OSError: no spawner is to be had, or more is asked than it can do."""
        if self._spawner:
            try:
                return loader_on(self._spawner.connect())
            except (BrokenPipeError, ConnectionResetError):  # it is gone
                if self._spawner.pid:
                    raise
                self._spawner.close()
                self._spawner = None
        self._spawner = Spawner.of_systemd()
        return loader_on(self._spawner.connect())

    def ask_stack(self, pid: int) -> StackQuestion | None:
        """Ask where the kernel has this loader; None: nobody can tell."""
        with contextlib.suppress(OSError):
            return StackQuestion(pid, self._spawner if self._spawner and self._spawner.pid else None)
        return None

    def give_back(self, lane: Loader) -> None:
        """It has done its work."""
        if len(self.idle) < self.max_idle:
            self.idle.append(lane)
        else:
            lane.close()

    def keep_spare(self, count: int = 1) -> None:
        """Have so many at hand, if they can be had now."""
        with contextlib.suppress(OSError):
            while len(self.idle) < count and time.monotonic() >= self._not_before:
                self.idle.append(self.open())

    def lost(self, lane: Loader) -> None:
        """This loader is gone."""
        if lane in self.idle:
            self.idle.remove(lane)
        if not lane.pid:
            # It never said a word: the next one will hardly do better, and must not be started without end.
            self._not_before = time.monotonic() + STILLBORN_PAUSE
        lane.close()

    def close(self) -> None:
        """Let those at hand go."""
        while self.idle:
            self.idle.pop().close()
        if self._spawner:
            self._spawner.close()


def reap() -> None:
    """Let loaders that were our children and have ended go."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
