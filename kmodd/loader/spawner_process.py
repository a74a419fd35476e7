"""The spawner: a process with CAP_SYS_MODULE that forks a loader for each connection passed to it.

Its peer is the daemon that started it; under systemd, where the socket is /run/kmodd/loader, any process of root. A
peer can do two things: have a loader forked, which then checks its requests itself (`worker`), and read the kernel
stack of a loader of this spawner. The daemon that started it can also have a command runner forked (`command_runner`);
under systemd that is a unit of its own, as a spawner there is in a sandbox. Any other message has no effect.

It reaps its loaders, and ends when its peer has closed the connection and the last loader has ended. Under systemd the
unit lasts as long as that.

Boot waits for this process to start, so it does not import socket, selectors and signal.
"""

from __future__ import annotations

import _socket  # not socket, which makes enum members of all constants; that takes longer than a fork
import os
import select
import sys

from kmodd.loader import worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import NoReturn

    from kmodd.host.signals import SignalsBlocked
    from kmodd.loader.syscalls import Kernel
    from kmodd.loader.trusted_paths import Trusted

_MAX_MESSAGE = 64
"""Bytes of the longest message that is read."""
_FD_BYTES = 4
"""Bytes of a descriptor in a control message (SCM_RIGHTS in unix(7))."""
_REAP_INTERVAL = 1000
"""Milliseconds between calls of waitpid(2) while a loader has no pidfd."""


def run(connection: int, kernel: Kernel, trusted: Trusted, blocked: SignalsBlocked | None = None) -> None:
    """Serve a connection, an open descriptor, until the peer has closed it and the last loader has ended.

    `blocked`: block all signals in the spawner, and in a loader only during a request. None: leave them as they are.
    """
    worker.name_process("kmodd-spawner")
    if blocked:
        blocked.__enter__()
    spawner = _Spawner(connection, kernel, trusted, blocked)
    while spawner.has_peer or spawner.loaders:
        spawner.wait()


class _Spawner:
    """The connection to the daemon and the loaders forked for it."""

    def __init__(self, connection: int, kernel: Kernel, trusted: Trusted, blocked: SignalsBlocked | None) -> None:
        self._peer = _socket.socket(fileno=connection)
        self._kernel, self._trusted, self._blocked = kernel, trusted, blocked
        self.loaders: dict[int, int] = {}
        """pidfd (pidfd_open(2)) of each child by its pid, which is not reused before it is reaped; -1: no pidfd."""
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self.has_peer = True

    def wait(self) -> None:
        """Wait for a message or the end of a loader, and handle them."""
        for fd, _ in self._poll.poll(_REAP_INTERVAL if -1 in self.loaders.values() else None):
            if fd not in self.loaders.values():
                self._serve()
        self._reap()

    def _reap(self) -> None:
        while self.loaders:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:  # SIGCHLD is ignored, inherited from the parent: the kernel has reaped them
                pid = next(iter(self.loaders))
            if not pid:
                return
            fd = self.loaders.pop(pid)
            if fd >= 0:
                self._poll.unregister(fd)
                os.close(fd)

    def _serve(self) -> None:
        """Handle one message. No content of a message ends the spawner, as all later loads need it."""
        try:
            size = _socket.CMSG_LEN(_FD_BYTES)  # no room for a second one, which would stay open
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
                self._fork(theirs, self._be_loader)
            elif message == b"command" and self._blocked:
                self._fork(theirs, self._be_runner)
            else:
                _send_stack(message, theirs, self.loaders)
            os.close(theirs)

    def _fork(self, theirs: int, serve: Callable[[int], None]) -> None:
        """Fork a process for this connection. If that fails, the connection closes, which the daemon notices."""
        try:
            pid = os.fork()
        except OSError:
            return
        if not pid:
            self._be(serve, theirs)
        self.loaders[pid] = -1
        try:
            self.loaders[pid] = os.pidfd_open(pid)
        except OSError:
            return  # too many descriptors: see _REAP_INTERVAL
        self._poll.register(self.loaders[pid], select.POLLIN)

    def _be_loader(self, theirs: int) -> None:
        if self._blocked:
            self._blocked.__exit__()
        worker.serve(theirs, self._kernel, self._trusted)

    def _be_runner(self, theirs: int) -> None:
        from kmodd.loader import command_runner  # here: most spawners fork none

        command_runner.serve(theirs, self._trusted)

    def _be(self, serve: Callable[[int], None], theirs: int) -> NoReturn:
        """Call `serve` in the forked child, then exit."""
        status = 1
        try:
            os.setsid()  # so that a command that signals its process group does not reach the others
            self._peer.close()
            for fd in self.loaders.values():
                if fd >= 0:
                    os.close(fd)
            serve(theirs)
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)


def _send_stack(message: bytes, theirs: int, own: Iterable[int]) -> None:
    """Write /proc/PID/stack to `theirs` for the message `stack PID`, if PID is in `own` and the stack can be read."""
    pid = message.removeprefix(b"stack ").decode("ascii", "replace")
    if pid not in map(str, own):
        return
    try:
        with open(f"/proc/{pid}/stack", "rb", buffering=0) as file:
            os.set_blocking(theirs, False)
            os.write(theirs, file.read())
    except OSError:
        pass
