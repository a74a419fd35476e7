"""Read files and directories without waiting and with a limit of size, whatever lies in their place.

A directory of configuration or indexes may have a FIFO, whose open(2) waits for a writer, a device, whose opening has
effects, or a file that grows or is larger than memory.
"""

from __future__ import annotations

import errno
import os
import stat

LIMIT = 64 << 20
"""Bytes of a file of configuration or of an index; the largest index of Debian has 3 MiB."""

_NULL = os.makedev(1, 3)
"""/dev/null, to which a link masks a file of configuration."""
_PIECE = 65536
_KINDS = {
    stat.S_IFDIR: "is a directory", stat.S_IFIFO: "is a FIFO", stat.S_IFSOCK: "is a socket",
    stat.S_IFCHR: "is a device", stat.S_IFBLK: "is a device",
}  # fmt: skip


def read_file(path: str) -> bytes | None:
    """Return the content of a regular file, or None if it cannot be read."""
    try:
        return read_regular(path)
    except (OSError, ValueError):
        return None


def read_regular(path: str, limit: int = LIMIT) -> bytes:
    """Return the content of a regular file, or of /dev/null.

    Raises OSError: EFBIG for more than `limit` bytes, those of `open_regular`.
    """
    fd = open_regular(path)
    try:
        return _read(fd, limit)
    finally:
        os.close(fd)


def read_given(path: str | int, limit: int = LIMIT) -> bytes:
    """Return the content of a file that the user has named, which may be a pipe, or of an open descriptor.

    Raises OSError: EFBIG for more than `limit` bytes, those of open(2) and read(2).
    """
    fd = path if isinstance(path, int) else os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        return _read(fd, limit)
    finally:
        if fd != path:
            os.close(fd)


def open_regular(path: str) -> int:
    """Open a regular file, or /dev/null, for reading and return the descriptor; no other file is opened.

    Raises OSError: EISDIR or EINVAL for a file of another kind, those of open(2).
    """
    _check(os.stat(path))
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        _check(os.fstat(fd))  # it may have been replaced
    except OSError:
        os.close(fd)
        raise
    return fd


def names_in(directory: str) -> list[str]:
    """Return the names in a directory in byte order; none if it cannot be read."""
    try:
        return sorted(os.listdir(directory), key=os.fsencode)
    except (OSError, ValueError):
        return []


def why_unreadable(path: str) -> str:
    """Return why `read_regular` does not read a file that exists, as in `is a FIFO`; empty if that is not known."""
    try:
        status = os.stat(path)
        _check(status)
    except OSError as error:
        return str(error.strerror) if error.errno in (errno.EINVAL, errno.EISDIR) else ""
    return f"has more than {LIMIT >> 20} MiB" if status.st_size > LIMIT else ""


def _check(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode) and not (stat.S_ISCHR(status.st_mode) and status.st_rdev == _NULL):
        code = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
        raise OSError(code, _KINDS.get(stat.S_IFMT(status.st_mode), "is not a regular file"))


def _read(fd: int, limit: int) -> bytes:
    """Return what can be read from a descriptor; a file of /proc has a size of 0."""
    size = os.fstat(fd).st_size
    data = b""
    while size <= limit and len(data) <= limit:
        more = os.read(fd, max(size + 1 - len(data), _PIECE))
        if not more:
            return data
        data = data + more if data else more
    raise OSError(errno.EFBIG, f"has more than {limit >> 20} MiB")
