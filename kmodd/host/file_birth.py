"""Read when a file was made, by statx(2), which the standard library has from Python 3.15 on."""

from __future__ import annotations

import ctypes
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_AT_FDCWD: Final = -100
_STATX_BTIME: Final = 0x800
_SIZE: Final = 256
"""Bytes of struct statx (include/uapi/linux/stat.h)."""
_MASK: Final = struct.Struct("=I")
_BTIME: Final = 80, struct.Struct("=qI")
"""Place of stx_btime: seconds, ns."""


def birth_of(path: str) -> int:
    """Return when a file was made, links followed (µs since 1970); 0: its file system does not tell.

    Unlike the other times, no program can set it, and it stays where a file is written in place.
    """
    try:
        statx = ctypes.CDLL(None).statx
    except AttributeError:  # a C library without it
        return 0
    answer = ctypes.create_string_buffer(_SIZE)
    if statx(_AT_FDCWD, os.fsencode(path), 0, ctypes.c_uint(_STATX_BTIME), answer):
        return 0
    (mask,) = _MASK.unpack_from(answer)
    seconds, nanoseconds = _BTIME[1].unpack_from(answer, _BTIME[0])
    return int(seconds * 1_000_000 + nanoseconds // 1000) if mask & _STATX_BTIME else 0
