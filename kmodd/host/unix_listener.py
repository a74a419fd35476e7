"""A Unix socket whose path exists only while this process listens: `UnixListener`."""

from __future__ import annotations

import contextlib
import errno
import os
import socket


class UnixListener:
    """A listening Unix socket that removes its path when it is closed."""

    def __init__(self, path: str, kind: socket.SocketKind, mode: int, backlog: int) -> None:
        """Listen at `path`, replacing a socket without a listener.

        kind: SOCK_STREAM or SOCK_SEQPACKET. mode: permissions of the path. backlog: see listen(2). Raises OSError;
        EADDRINUSE if another process listens there.
        """
        with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as other:
            if other.connect_ex(path) in (0, errno.EAGAIN):  # EAGAIN: the queue of its listener is full
                raise OSError(errno.EADDRINUSE, "another kmodd is running and serves this socket", path)
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        # Bound to another name and renamed, so that the path exists only once the socket listens.
        beside = f"{path}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        self.socket.bind(beside)
        os.chmod(beside, mode)
        self.socket.listen(backlog)
        os.rename(beside, path)
        self._inode = os.stat(path).st_ino

    def accept(self) -> socket.socket | None:
        """Return the next connection, in blocking mode; None if there is none, or no descriptor left."""
        try:
            return self.socket.accept()[0]
        except OSError:
            return None

    def close(self) -> None:
        """Remove the path, unless it is another process's by now, then stop listening."""
        with contextlib.suppress(OSError):
            if os.stat(self.path).st_ino == self._inode:
                os.unlink(self.path)
        self.socket.close()
