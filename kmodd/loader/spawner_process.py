"""The spawner itself: a process that forks a loader for each connection that it is passed (`spawner`).

It ends when the daemon's end of its own connection is closed and its last loader has ended: it reaps them, and under
systemd its unit lasts as long as any of them.

Boot waits for its start, so it does without the modules socket, selectors and signal, as the loader does.
"""

from __future__ import annotations

import _socket  # the C half: the other one makes enum members of all its constants, which takes longer than a fork
import os
import select
import sys

from kmodd.loader import worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn

    from kmodd.host.signals import SignalsBlocked
    from kmodd.loader.syscalls import Kernel
    from kmodd.loader.trusted_paths import Trusted

_MAX_MESSAGE = 64
_FD_BYTES = 4
"""Of a descriptor in a control message (unix(7))."""
_LOOK_AGAIN = 1000
"""Milliseconds between looks for a loader whose end nothing tells."""


def run(connection: int, kernel: Kernel, trusted: Trusted, held: SignalsBlocked | None = None) -> None:
    """Be the spawner of this connection, an open descriptor, until the peer has closed it and no loader is left.

    `held`: signals are held back in the spawner, and in loaders only while they are at work.
    """
    worker.name_process("kmodd-spawner")
    if held:
        held.__enter__()
    spawning = _Spawning(connection, kernel, trusted, held)
    while spawning.has_peer or spawning.loaders:
        spawning.wait()


class _Spawning:
    def __init__(self, connection: int, kernel: Kernel, trusted: Trusted, held: SignalsBlocked | None) -> None:
        self._peer = _socket.socket(fileno=connection)
        self._kernel, self._trusted, self._held = kernel, trusted, held
        self.loaders: dict[int, int] = {}
        """Process number, which is its own until reaped → descriptor that tells its end (pidfd_open(2)); -1: none."""
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self.has_peer = True

    def wait(self) -> None:
        """Wait until the peer asks for something, or a loader has ended."""
        for fd, _ in self._poll.poll(_LOOK_AGAIN if -1 in self.loaders.values() else None):
            if fd not in self.loaders.values():
                self._serve()
        self._reap()

    def _reap(self) -> None:
        while self.loaders:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:  # whoever started us ignores SIGCHLD: the kernel has let them go
                pid = next(iter(self.loaders))
            if not pid:
                return
            fd = self.loaders.pop(pid)
            if fd >= 0:
                self._poll.unregister(fd)
                os.close(fd)

    def _serve(self) -> None:
        """Do what one message asks for. Nothing in it ends the spawner, for all systems hang on it."""
        try:
            size = _socket.CMSG_LEN(_FD_BYTES)  # no room for a second one, which nobody would close
            message, control, _, _ = self._peer.recvmsg(_MAX_MESSAGE, size, _socket.MSG_CMSG_CLOEXEC)
        except OSError:
            message, control = b"", []
        passed = [int.from_bytes(data[:_FD_BYTES], sys.byteorder) for *_, data in control]
        if not message:
            self.has_peer = False
            self._poll.unregister(self._peer.fileno())
            self._peer.close()
        for theirs in passed:
            if message == b"loader":
                self._fork(theirs)
            else:
                _tell_stack(message, theirs, self.loaders)
            os.close(theirs)

    def _fork(self, theirs: int) -> None:
        """A loader for this connection. Where there can be none, the daemon sees the connection's end."""
        try:
            pid = os.fork()
        except OSError:
            return
        if not pid:
            self._be_loader(theirs)
        self.loaders[pid] = -1
        try:
            self.loaders[pid] = os.pidfd_open(pid)
        except OSError:
            return  # too many descriptors: it is looked for
        self._poll.register(self.loaders[pid], select.POLLIN)

    def _be_loader(self, theirs: int) -> NoReturn:
        status = 1
        try:
            os.setsid()  # a command that signals its process group is not to reach the others
            self._peer.close()
            for fd in self.loaders.values():
                if fd >= 0:
                    os.close(fd)
            if self._held:
                self._held.__exit__()
            worker.serve(theirs, self._kernel, self._trusted)
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)


def _tell_stack(message: bytes, theirs: int, own: Iterable[int]) -> None:
    """Write the kernel stack of one of our loaders. Nothing is written where it cannot be read."""
    pid = message.removeprefix(b"stack ").decode("ascii", "replace")
    if pid not in map(str, own):
        return
    try:
        with open(f"/proc/{pid}/stack", "rb", buffering=0) as file:
            os.set_blocking(theirs, False)
            os.write(theirs, file.read())
    except OSError:
        pass
