"""inotify(7) by the C library's three calls: `Inotify`.

No package: inotify_simple has ctypes.util look for the C library, which runs `ldconfig` and needs seven more modules of
the standard library; both together took a fifteenth of a start.
"""

from __future__ import annotations

import ctypes
import os
import struct

from kmodd.dataclass import dataclass

# <sys/inotify.h>
CLOSE_WRITE = 0x8
ATTRIB = 0x4
MOVED_FROM, MOVED_TO = 0x40, 0x80
CREATE, DELETE = 0x100, 0x200
UNMOUNT, Q_OVERFLOW, IGNORED = 0x2000, 0x4000, 0x8000
ONLYDIR = 0x01000000

_EVENT = struct.Struct("iIII")
"""struct inotify_event, up to its name: watch, mask, cookie, length of the name with its padding."""

_AT_ONCE = 1 << 18
"""Bytes that one read takes, thousands of events; one has at most 272."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened."""

    watch: int
    """The descriptor that `add_watch` returned; -1 with Q_OVERFLOW."""
    mask: int
    name: str
    """In the directory; empty for the directory itself."""


class Inotify:
    """One descriptor; it never blocks."""

    def __init__(self) -> None:
        """Raises OSError: EMFILE (fs.inotify.max_user_instances), ENOSYS."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._answer(self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))

    def fileno(self) -> int:
        """For select."""
        return self._fd

    def add_watch(self, path: str, mask: int) -> int:
        """Watch `path` for what is in `mask`, in place of what it was watched for; its watch descriptor.

        Raises OSError: ENOENT, ENOTDIR, EACCES, ENOSPC (fs.inotify.max_user_watches).
        """
        return self._answer(self._libc.inotify_add_watch(self._fd, os.fsencode(path), ctypes.c_uint32(mask)))

    def rm_watch(self, watch: int) -> None:
        """Watch it no more. Raises OSError: EINVAL where the kernel has dropped it already."""
        self._answer(self._libc.inotify_rm_watch(self._fd, watch))

    def read(self) -> list[Event]:
        """What waits, some thousand at the most: it stays readable as long as there is more."""
        try:
            data = os.read(self._fd, _AT_ONCE)
        except BlockingIOError:
            return []
        events, at = [], 0
        while at < len(data):
            watch, mask, _cookie, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size + length
            events.append(Event(watch, mask, os.fsdecode(data[at - length : at].rstrip(b"\0"))))
        return events

    def close(self) -> None:
        """Drop all watches."""
        os.close(self._fd)

    @staticmethod
    def _answer(result: int) -> int:
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result
