"""The system calls that put a module in and take it out, one thin function each, errno kept."""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Protocol

IGNORE_MODVERSIONS = 1
IGNORE_VERMAGIC = 2
COMPRESSED_FILE = 4
"""Flags of finit_module (include/uapi/linux/module.h)."""

_NUMBERS = {
    # init_module, delete_module, finit_module; arch/*/entry/syscalls, asm-generic/unistd.h
    "x86_64": (175, 176, 313),
    "aarch64": (105, 106, 273),
    "riscv64": (105, 106, 273),
    "loongarch64": (105, 106, 273),
    "ppc64le": (128, 129, 353),
    "s390x": (128, 129, 344),
    "armv7l": (128, 129, 379),
    "i686": (128, 129, 350),
}


class Kernel(Protocol):
    """What a loader needs of a kernel. Tests have one of their own."""

    def finit_module(self, fd: int, options: str, flags: int) -> None:
        """Load the module in the open file `fd`; returns when its init has returned. Raises OSError."""

    def init_module(self, image: bytes, options: str) -> None:
        """Load a module from memory, for files that only user space can unpack. Raises OSError."""

    def delete_module(self, name: str, flags: int) -> None:
        """Remove the module `name`; `flags` are O_NONBLOCK and O_TRUNC (force). Raises OSError."""


class LinuxKernel:
    """The running kernel, by syscall(2): the C library has no wrappers for these."""

    def __init__(self) -> None:
        """Raises OSError (ENOSYS) on a machine whose call numbers are not known here."""
        numbers = _NUMBERS.get(platform.machine())
        if numbers is None:
            raise OSError(38, f"no module calls known for machine type {platform.machine()}")
        self._init, self._delete, self._finit = numbers
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._syscall.restype = ctypes.c_long

    def finit_module(self, fd: int, options: str, flags: int) -> None:
        # The options are never NULL: the kernel answers that with EFAULT.
        self._call(self._finit, ctypes.c_int(fd), ctypes.c_char_p(os.fsencode(options)), ctypes.c_int(flags))

    def init_module(self, image: bytes, options: str) -> None:
        self._call(
            self._init, ctypes.c_char_p(image), ctypes.c_ulong(len(image)), ctypes.c_char_p(os.fsencode(options))
        )

    def delete_module(self, name: str, flags: int) -> None:
        self._call(self._delete, ctypes.c_char_p(os.fsencode(name)), ctypes.c_uint(flags))

    def _call(self, number: int, *arguments: object) -> None:
        if self._syscall(ctypes.c_long(number), *arguments) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
