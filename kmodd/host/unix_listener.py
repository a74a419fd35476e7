"""A Unix socket at a place of its own: there only while somebody listens, never another daemon's. `UnixListener`."""

from __future__ import annotations

import contextlib
import errno
import os
import socket


class UnixListener:
    """Listens, and takes its name away at the end."""

    def __init__(self, path: str, kind: socket.SocketKind, mode: int, backlog: int) -> None:
        """Listen at `path`, in the place of a socket that nobody serves any more; `mode`: who may connect.

        Raises OSError; EADDRINUSE where somebody does.
        """
        with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as other:
            if other.connect_ex(path) in (0, errno.EAGAIN):  # EAGAIN: its queue is full
                raise OSError(errno.EADDRINUSE, "another kmodd is running and serves this socket", path)
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        # Bound beside and renamed, so that the name is there only once somebody listens.
        beside = f"{path}.new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        self.socket.bind(beside)
        os.chmod(beside, mode)
        self.socket.listen(backlog)
        os.rename(beside, path)
        self._inode = os.stat(path).st_ino

    def accept(self) -> socket.socket | None:
        """Who waits at the door, not blocking as any new socket may; None: nobody, or there is no descriptor left."""
        try:
            return self.socket.accept()[0]
        except OSError:
            return None

    def close(self) -> None:
        """Stop listening; the name goes first, so that nobody connects in vain, unless it is another's by now."""
        with contextlib.suppress(OSError):
            if os.stat(self.path).st_ino == self._inode:
                os.unlink(self.path)
        self.socket.close()
