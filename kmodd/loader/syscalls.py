"""The system calls that load and remove a module, one function each. Nothing is checked here, but by the kernel."""

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
    """The system calls of a loader; an interface, so that tests can replace the kernel."""

    def finit_module(self, fd: int, options: str, flags: int) -> None:
        """Load the module in the open file `fd` with parameters; return after its init. Raises OSError."""

    def init_module(self, image: bytes, options: str) -> None:
        """Load a module from memory, if the kernel cannot unpack its file; return after its init. Raises OSError."""

    def delete_module(self, name: str, flags: int) -> None:
        """Remove the module `name`. `flags`: O_NONBLOCK, O_TRUNC to force (delete_module(2)). Raises OSError."""


class LinuxKernel:
    """The running kernel, called by syscall(2), as the C library has no wrappers for these calls."""

    def __init__(self) -> None:
        """Raises OSError (ENOSYS) if the call numbers of this machine type are not known."""
        import ctypes  # here: it costs as much as the rest of a tool, which may have nothing to load

        self._c = ctypes
        machine = os.uname().machine
        numbers = _NUMBERS.get(machine)
        if numbers is None:
            raise OSError(38, f"unknown system call numbers for machine type {machine}")
        self._init, self._delete, self._finit = map(ctypes.c_long, numbers)
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._syscall.restype = ctypes.c_long

    def finit_module(self, fd: int, options: str, flags: int) -> None:
        # Never NULL, for which the kernel returns EFAULT.
        self._call(self._finit, fd, os.fsencode(options), flags)

    def init_module(self, image: bytes, options: str) -> None:
        self._call(self._init, image, self._c.c_ulong(len(image)), os.fsencode(options))

    def delete_module(self, name: str, flags: int) -> None:
        self._call(self._delete, os.fsencode(name), flags)

    def _call(self, *arguments: object) -> None:
        if self._syscall(*arguments) != 0:
            code = self._c.get_errno()
            raise OSError(code, os.strerror(code))
