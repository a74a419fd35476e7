"""The system calls that put a module in and take it out, one thin function each, errno kept."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object

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
        import ctypes  # as much as the rest of a tool that in the end has nothing to load

        self._c = ctypes
        machine = os.uname().machine
        numbers = _NUMBERS.get(machine)
        if numbers is None:
            raise OSError(38, f"no module calls known for machine type {machine}")
        self._init, self._delete, self._finit = map(ctypes.c_long, numbers)
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._syscall.restype = ctypes.c_long

    def finit_module(self, fd: int, options: str, flags: int) -> None:
        # The options are never NULL: the kernel answers that with EFAULT.
        self._call(self._finit, fd, os.fsencode(options), flags)

    def init_module(self, image: bytes, options: str) -> None:
        self._call(self._init, image, self._c.c_ulong(len(image)), os.fsencode(options))

    def delete_module(self, name: str, flags: int) -> None:
        self._call(self._delete, os.fsencode(name), flags)

    def _call(self, *arguments: object) -> None:
        if self._syscall(*arguments) != 0:
            code = self._c.get_errno()
            raise OSError(code, os.strerror(code))
