"""The daemon's connection to the spawner, the process that forks its loaders (`spawner_process`).

Under systemd the spawner is an instance of `kmodd-loader@.service`, started by connecting to that unit's socket.
Without systemd the daemon starts it and then gives up its own capabilities (`capabilities`). This file runs in the
daemon, which can send three messages on the SOCK_SEQPACKET connection, each with one descriptor; none has a reply:
`loader` passes the spawner's end of a connection to a new loader, `command`, without systemd, to a new command runner,
`stack PID` where to write /proc/PID/stack of one of the spawner's own loaders.

A fork of a running Python takes milliseconds, a new Python in a sandbox of its own half a second under an emulator.
This file imports little, so that the daemon can start a spawner before its other imports.
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
"""Descriptor of the connection in a spawner that the daemon has started."""


class Spawner:
    """A connection to a spawner process."""

    def __init__(self, connection: socket.socket, pid: int = 0) -> None:
        """Take over an open connection.

        `pid`: of a child of this process, which reaps it and can ask it for kernel stacks; 0 if systemd started it.
        """
        self._connection = connection
        self._connection.setblocking(False)
        self.pid = pid

    @classmethod
    def of_systemd(cls) -> Spawner:
        """Have systemd start one, without waiting for it. Raises OSError: no such socket, connection refused."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            connection.connect(LOADER_SOCKET)
        except OSError:
            connection.close()
            raise
        return cls(connection)

    @classmethod
    def of_ours(cls, trusted: Trusted) -> Spawner:
        """Start one as a child, in a new session so that a Ctrl-C for the daemon does not reach it. Raises OSError."""
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
        """Return the descriptor, readable once the spawner is gone."""
        return self._connection.fileno()

    def connect(self) -> socket.socket:
        """Return a connection, in blocking mode, to a new loader, without waiting for it to start.

        Raises OSError: the spawner is gone, or its queue is full.
        """
        return self._ask(b"loader", socket.SOCK_SEQPACKET)

    def connect_runner(self) -> socket.socket:
        """Return a connection to a new command runner as `connect` does, of a spawner that this process has started."""
        return self._ask(b"command", socket.SOCK_SEQPACKET)

    def ask_stack(self, pid: int) -> socket.socket:
        """Return a stream of the kernel stack of the loader `pid`, empty if it is none of this spawner's.

        Raises OSError as `connect` does.
        """
        return self._ask(b"stack %d" % pid, socket.SOCK_STREAM)

    def _ask(self, message: bytes, kind: int) -> socket.socket:
        """Send a message with one end of a new socket pair, and return the other end."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        with theirs:
            try:
                socket.send_fds(self._connection, [message], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return ours

    def close(self) -> None:
        """Close the connection. Loaders run until their own connections close, and the spawner as long as they do."""
        self._connection.close()
