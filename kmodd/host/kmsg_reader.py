"""Read /dev/kmsg: what the kernel logs about a module during its load (`KernelLog`), or all (`KernelMessages`)."""

from __future__ import annotations

import contextlib
import os
from collections import deque

from kmodd.kernel import kmsg
from kmodd.kernel.kmsg import KernelLine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

KMSG = "/dev/kmsg"
_RECORD = 8192
"""Bytes of the longest record (kernel/printk, CONSOLE_EXT_LOG_MAX)."""
_MAX_LINES = 8
"""Lines returned by one call of `KernelLog.about`."""
AT_ONCE = 1024
"""Records read by one call of `KernelMessages.read`."""
KEPT = 200
"""Lines kept for `KernelMessages.last`."""


class KernelLog:
    """The kernel log from now on, for a `with` block; empty if it cannot be read."""

    def __init__(self, path: str = KMSG) -> None:
        """Open the log at its end."""
        try:
            self._fd = _open(path)
        except OSError:
            self._fd = -1
            return
        with contextlib.suppress(OSError):
            os.lseek(self._fd, 0, os.SEEK_END)

    def __enter__(self) -> KernelLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def about(self, *modules: str) -> list[str]:
        """Return the lines about `modules` logged since the last call."""
        if self._fd < 0:
            return []
        lines: list[str] = []
        # Most are `NAME: …`; `Loading of unsigned module is rejected` has no name (kernel/module/*.c)
        starts = ("Loading of ", *(f"{module}: " for module in modules), *(f"Module {module} " for module in modules))
        while len(lines) < _MAX_LINES and (record := _next(self._fd)):
            line = kmsg.parse(record)
            if line and not line.facility and line.text.startswith(starts):
                lines.append(line.text)
        return lines


class KernelMessages:
    """The whole kernel log, from the oldest record that the kernel still has."""

    def __init__(self, path: str = KMSG) -> None:
        """Open the log. Raises OSError: no such file, or kernel.dmesg_restrict is set and CAP_SYSLOG missing."""
        self._fd = _open(path)
        self._last: deque[bytes] = deque(maxlen=KEPT)
        self._unread: deque[bytes] = deque(maxlen=AT_ONCE)

    def fileno(self) -> int:
        """Return the descriptor, readable when there are more records."""
        return self._fd

    def read(self, having: bytes = b"") -> list[KernelLine]:
        """Read at most AT_ONCE new records; return the lines of those that contain the bytes `having`.

        Records that the kernel overwrote before they were read are missing. Those without `having` are not parsed.
        """
        self._fetch()
        lines = _lines(record for record in self._unread if having in record)
        self._unread.clear()
        return lines

    def catch_up(self) -> None:
        """Read all records so far for `last`; the next `read` still returns those of the last AT_ONCE."""
        while self._fetch():
            pass

    def _fetch(self) -> bool:
        """Read at most AT_ONCE records. Return True if there may be more."""
        for _ in range(AT_ONCE):
            record = _next(self._fd)
            if not record:
                return False
            self._unread.append(record)
            if record[1:2] == b"," and record < b"8":  # `0,` to `7,`: the kernel itself (kmsg.parse)
                self._last.append(record)
        return True

    def last(self, count: int = KEPT) -> tuple[KernelLine, ...]:
        """Return the kernel's own last lines that were read, the oldest first."""
        return tuple(_lines(self._last)[-count:])

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)


def _lines(records: Iterable[bytes]) -> list[KernelLine]:
    return [line for line in map(kmsg.parse, records) if line]


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _next(fd: int) -> bytes:
    """Return the next record; empty if there is none now."""
    for _ in range(2):
        try:
            return os.read(fd, _RECORD)
        except BrokenPipeError:
            pass  # overwritten before it was read; the next read returns the oldest that is left
        except OSError:
            break  # EAGAIN: no more records
    return b""
