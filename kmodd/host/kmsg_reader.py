"""What the kernel says, out of /dev/kmsg: of a module while it takes it in (`KernelLog`), or all (`KernelMessages`)."""

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
"""Lines about a module that are given at most."""
AT_ONCE = 1024
"""Records that one `read` takes at most."""
KEPT = 200
"""Lines that can be looked back on."""


class KernelLog:
    """Reads what is logged from now on, in a `with` block. Where the log cannot be read, it has nothing to say."""

    def __init__(self, path: str = KMSG) -> None:
        """Open it at its end."""
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
        """The lines that came since this was asked last and are about one of `modules`."""
        if self._fd < 0:
            return []
        lines: list[str] = []
        # `NAME: …` is most of it; `Loading of unsigned module is rejected` names nobody (kernel/module/*.c)
        starts = ("Loading of ", *(f"{module}: " for module in modules), *(f"Module {module} " for module in modules))
        while len(lines) < _MAX_LINES and (record := _next(self._fd)):
            line = kmsg.parse(record)
            if line and line.text.startswith(starts):
                lines.append(line.text)
        return lines


class KernelMessages:
    """Follows the log. It begins with what the kernel still has of the time before."""

    def __init__(self, path: str = KMSG) -> None:
        """Raises OSError: no such file, or no CAP_SYSLOG where kernel.dmesg_restrict is set."""
        self._fd = _open(path)
        self._last: deque[bytes] = deque(maxlen=KEPT)
        self._unread: deque[bytes] = deque(maxlen=AT_ONCE)

    def fileno(self) -> int:
        """Readable when there is more."""
        return self._fd

    def read(self, having: bytes = b"") -> list[KernelLine]:
        """What came since, of at most AT_ONCE records those that have these bytes in them.

        What was overwritten before it was read is left out. The others cost next to nothing: they are not taken apart.
        """
        self._fetch()
        lines = _lines(record for record in self._unread if having in record)
        self._unread.clear()
        return lines

    def catch_up(self) -> None:
        """Have `last` know all that was said by now; `read` gives it all the same."""
        while self._fetch():
            pass

    def _fetch(self) -> bool:
        """Take at most AT_ONCE records. True: there may be more."""
        for _ in range(AT_ONCE):
            record = _next(self._fd)
            if not record:
                return False
            self._unread.append(record)
            if record[1:2] == b"," and record < b"8":  # `0,` to `7,`: the kernel itself (kmsg.parse)
                self._last.append(record)
        return True

    def last(self, count: int = KEPT) -> tuple[str, ...]:
        """The texts of the last lines of the kernel's own that were read, the oldest first."""
        return tuple(line.text for line in _lines(self._last)[-count:])

    def close(self) -> None:
        os.close(self._fd)


def _lines(records: Iterable[bytes]) -> list[KernelLine]:
    return [line for line in map(kmsg.parse, records) if line]


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _next(fd: int) -> bytes:
    """The next record; empty where there is none now."""
    for _ in range(2):
        try:
            return os.read(fd, _RECORD)
        except BrokenPipeError:
            pass  # overwritten before we came to it; the next read gives the oldest that is left
        except OSError:
            break  # EAGAIN: there is no more
    return b""
