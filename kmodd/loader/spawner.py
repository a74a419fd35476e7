"""The daemon's side of the spawner: the process that makes its loaders, by fork (`spawning`).

Under systemd it is an instance of `kmodd-loader@.service`, made by connecting to that unit's socket. Elsewhere the
daemon starts it, then drops what it does not need itself (`privilege`). Either way the daemon can only ask: one
datagram on a SOCK_SEQPACKET connection, with one descriptor beside it. `loader`: the far end of a new lane. `stack
PID`: where to write /proc/PID/stack of one of the spawner's own loaders. There are no answers.

A started Python that forks takes milliseconds; another one that starts, in a sandbox of its own, half a second under an
emulator. This file imports little, so that the daemon can ask for a spawner before it has imported anything else.
"""

from __future__ import annotations

import os
import socket
import sys

from kmodd.host.paths import LOADER_SOCKET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kmodd.loader.trusted_paths import Trusted

_INHERITED = 3
"""The descriptor of the connection in a spawner that the daemon starts."""


class Spawner:
    """A connection to one."""

    def __init__(self, connection: socket.socket, pid: int = 0) -> None:
        """`pid`: of a child of ours, to be reaped; it may look where its loaders are in the kernel. 0: systemd's."""
        self._connection = connection
        self._connection.setblocking(False)
        self.pid = pid

    @classmethod
    def of_systemd(cls) -> Spawner:
        """One that systemd makes; does not wait for it to begin. Raises OSError: no such socket, connection refused."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            connection.connect(LOADER_SOCKET)
        except OSError:
            connection.close()
            raise
        return cls(connection)

    @classmethod
    def of_ours(cls, trusted: Trusted) -> Spawner:
        """Start one, in a session of its own, so that a Ctrl-C for the daemon does not reach it. Raises OSError."""
        connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        with theirs:
            pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {package!r}); "
                 "from kmodd.cli.loader import main; sys.exit(main(sys.argv[1:]))",
                 "--fd", str(_INHERITED), *trusted.words()],
                dict(os.environ),
                file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), _INHERITED)],
                setsid=True,
            )  # fmt: skip
        return cls(connection, pid)

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
        """Let it go. Loaders stay until their connections close, and it as long as they do."""
        self._connection.close()
