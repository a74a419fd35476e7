"""The kernel stack of a loader that hangs, requested from a process that may read it.

Reading /proc/PID/stack requires CAP_SYS_ADMIN (fs/proc/base.c, proc_pid_stack), which the daemon does not have. Under
systemd kmodd-stack@.service replies, without systemd the spawner. Both check that PID is a loader. This file runs in
the daemon, and nothing in it blocks.
"""

from __future__ import annotations

import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kmodd.loader.spawner import Spawner

STACK_SOCKET = "/run/kmodd/stack"
_MAX_BYTES = 65536
"""Bytes of a stack that are read; the kernel shows 64 frames."""


class StackQuestion:
    """One request for a kernel stack."""

    def __init__(self, pid: int, spawner: Spawner | None, path: str = STACK_SOCKET) -> None:
        """Ask `spawner`, or the socket `path` if it is None, for the stack of the loader `pid`.

        Raises OSError if neither is there.
        """
        self._text = b""
        if spawner:
            self._connection = spawner.ask_stack(pid)
            self._connection.setblocking(False)
            return
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.setblocking(False)
        try:
            self._connection.connect(path)
            self._connection.send(b"%d\n" % pid)
        except OSError:
            self._connection.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor, readable when `answer` has more to read."""
        return self._connection.fileno()

    def answer(self) -> tuple[str, ...] | None:
        """Read on; return the frames, innermost first ("msleep+0x2d/0x40"), or None while the stack is incomplete.

        The tuple is empty if the stack cannot be read.
        """
        while len(self._text) < _MAX_BYTES:
            try:
                data = self._connection.recv(_MAX_BYTES)
            except BlockingIOError:
                return None
            except OSError:
                break
            if not data:
                break
            self._text += data
        lines = self._text[:_MAX_BYTES].decode("ascii", "replace").splitlines()
        # Each line begins with "[<0>] ", or with an address in older kernels.
        return tuple(line.partition("] ")[2] if line.startswith("[<") else line for line in lines)

    def close(self) -> None:
        """Close the connection; the rest of the stack is not read."""
        self._connection.close()
