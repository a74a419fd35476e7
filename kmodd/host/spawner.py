"""Loaders where no systemd makes them: a child that keeps the privileges which the daemon gives up, and forks.

The daemon starts one spawner, then drops what it does not need (`privilege.py`). From then on it can only ask: one
datagram on a SOCK_SEQPACKET connection, with one descriptor beside it. `loader`: the far end of a new lane, served by a
fork. `stack PID`: where to write /proc/PID/stack of one of the spawner's own loaders. There are no answers.

It ends when the daemon's end is closed, and by no signal; its loaders serve on until their own connections close.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import sys

from kmodd.host import loader
from kmodd.host.kernel import Kernel
from kmodd.host.trusted import Trusted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_MAX_MESSAGE = 64
_LATER = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Held back in the spawner: whoever stops a service sends them to all of its processes."""
_INHERITED = 3
"""The spawner's descriptor of the connection."""


class Spawner:
    """The daemon's side."""

    def __init__(self, trusted: Trusted) -> None:
        """Start it, in a session of its own, so that a Ctrl-C for the daemon does not reach it. Raises OSError."""
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.setblocking(False)
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        with theirs:
            self.pid = os.posix_spawn(  # a child of ours, to be reaped
                sys.executable,
                [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {package!r}); "
                 "from kmodd.cli.loader import main; sys.exit(main(sys.argv[1:]))",
                 "--spawner", str(_INHERITED), *trusted.words()],
                dict(os.environ),
                file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), _INHERITED)],
                setsid=True,
            )  # fmt: skip

    def fileno(self) -> int:
        """For select: readable once it is gone."""
        return self._connection.fileno()

    def connect(self) -> socket.socket:
        """A connection to a new loader, blocking like any new socket; does not wait for it to begin.

        Raises OSError: the spawner is gone, or more is asked than it can do.
        """
        return self._ask(b"loader", socket.SOCK_SEQPACKET)

    def ask_stack(self, pid: int) -> socket.socket:
        """A stream that brings the kernel stack of the loader `pid` and its end; nothing if it is not one. OSError."""
        return self._ask(b"stack %d" % pid, socket.SOCK_STREAM)

    def _ask(self, message: bytes, kind: int) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        with theirs:
            try:
                socket.send_fds(self._connection, [message], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return ours

    def close(self) -> None:
        """Let it go. Loaders stay until their connections close."""
        self._connection.close()


def run(connection: socket.socket, kernel: Kernel, trusted: Trusted) -> None:
    """Be the spawner, until the daemon's end of the connection is closed."""
    loader.name_process("kmodd-spawner")
    signal.pthread_sigmask(signal.SIG_BLOCK, _LATER)
    loaders: dict[
        int, int
    ] = {}  # descriptor of the process (pidfd_open(2)) → its number, which is its own until reaped
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd in loaders:
                    os.waitpid(loaders.pop(key.fd), 0)
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    continue
                message, passed, _, _ = socket.recv_fds(connection, _MAX_MESSAGE, 1, socket.MSG_CMSG_CLOEXEC)
                if not message:
                    return
                if not passed:
                    continue
                with socket.socket(fileno=passed[0]) as theirs:
                    if message == b"loader":
                        if pid := _fork(theirs, [connection.fileno(), selector.fileno(), *loaders], kernel, trusted):
                            fd = os.pidfd_open(pid)
                            loaders[fd] = pid
                            selector.register(fd, selectors.EVENT_READ)
                    else:
                        _tell_stack(message, theirs, loaders.values())


def _fork(theirs: socket.socket, ours: list[int], kernel: Kernel, trusted: Trusted) -> int:
    """A loader for this connection: its process, 0 where there can be none. `ours`: descriptors that it closes."""
    try:
        pid = os.fork()
    except OSError:
        return 0  # The daemon sees the connection's end.
    if pid:
        return pid
    status = 1
    try:
        for fd in ours:
            os.close(fd)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _LATER)
        loader.serve(theirs.fileno(), kernel, trusted)
        status = 0
    finally:
        os._exit(status)


def _tell_stack(message: bytes, theirs: socket.socket, own: Iterable[int]) -> None:
    """Write the kernel stack of one of our loaders. Nothing is written where it cannot be read."""
    pid = message.removeprefix(b"stack ").decode("ascii", "replace")
    if pid not in map(str, own):
        return
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stack", "rb", buffering=0) as file:
        theirs.setblocking(False)
        theirs.send(file.read())
