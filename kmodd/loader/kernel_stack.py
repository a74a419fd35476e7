"""Where a loader that does not come back is in the kernel: its stack, asked of somebody who may read it.

Reading /proc/PID/stack takes CAP_SYS_ADMIN (fs/proc/base.c, proc_pid_stack), which the daemon has not. Under systemd
kmodd-stack@.service answers, elsewhere the spawner does. Both tell of loaders only, and nothing here waits.
"""

from __future__ import annotations

import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kmodd.loader.spawner import Spawner

STACK_SOCKET = "/run/kmodd/stack"
_MAX_BYTES = 65536
"""Bytes that count; the kernel shows 64 frames."""


class StackQuestion:
    """One question under way."""

    def __init__(self, pid: int, spawner: Spawner | None, path: str = STACK_SOCKET) -> None:
        """Ask about the loader `pid`; `spawner` None: at the socket `path`. Raises OSError where there is nobody."""
        self._text = b""
        if spawner:
            self._connection = spawner.ask_stack(pid)
            self._connection.setblocking(False)
            return
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.setblocking(False)
        try:
            self._connection.connect(path)
            self._connection.send(b"%d\n" % pid)
        except OSError:
            self._connection.close()
            raise

    def fileno(self) -> int:
        """For select: readable when `answer` gets on."""
        return self._connection.fileno()

    def answer(self) -> tuple[str, ...] | None:
        """The frames, innermost first ("msleep+0x2d/0x40"); none: not to be had; None: not all has come yet."""
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
        # "[<0>] " stands where an address was in older kernels.
        return tuple(line.partition("] ")[2] if line.startswith("[<") else line for line in lines)

    def close(self) -> None:
        """Whatever is still to come is not wanted."""
        self._connection.close()
