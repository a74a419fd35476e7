"""A module's file by itself: its name, and reading its image."""

from __future__ import annotations

import errno
import os

from kmodd.host.regular_files import LIMIT, open_regular
from kmodd.names import MODULE_SUFFIXES

_ELF = b"\x7fELF"
_SHORTEST = 64
"""Bytes of the header of an ELF file."""


def is_module_file(name: str) -> bool:
    """Return whether a base name is that of a module file."""
    return name.endswith(MODULE_SUFFIXES) and not name.startswith(MODULE_SUFFIXES)


def read_module(path: str) -> bytes:
    """Return the image of the module in a file, unpacked if the file is compressed.

    Raises OSError: EINVAL for a file too short for a module, EFBIG for one of more than `UNPACKED_LIMIT`, those of
    `open_regular` and of `kmodd.modfile.decompress.unpack`.
    """
    fd = open_regular(path)
    try:
        size = os.fstat(fd).st_size
        if size < _SHORTEST or os.pread(fd, len(_ELF), 0) != _ELF:
            from kmodd.modfile.decompress import HEAD, compression, unpack  # only here: 0.2 ms

            head = os.pread(fd, HEAD, 0)
            if len(head) < HEAD:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            if name := compression(head):
                with open(fd, "rb", closefd=False) as file:
                    return unpack(file, name)
        if size > LIMIT:
            from kmodd.modfile.decompress import UNPACKED_LIMIT  # only here: 0.2 ms

            if size > UNPACKED_LIMIT:
                raise OSError(errno.EFBIG, f"has more than {UNPACKED_LIMIT >> 30} GiB: damaged or no module")
        data = os.read(fd, size + 1)
        while len(data) < size and (more := os.read(fd, size - len(data))):
            data += more
        return data
    finally:
        os.close(fd)


def read_ahead(path: str, trees: tuple[str, ...]) -> None:
    """Have the kernel read a file of these trees into the page cache, without waiting.

    Errors, and a file that is not root's alone, are left to the later open(2).
    """
    from kmodd.host.file_owner import open_file  # only here: modinfo does without

    try:
        fd = open_file(path, trees)
    except (OSError, ValueError):
        return
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
    except OSError:
        pass
    finally:
        os.close(fd)


def is_packed(name: str) -> bool:
    """Return whether a file is probably compressed, by its name."""
    return not name.endswith(".ko")
