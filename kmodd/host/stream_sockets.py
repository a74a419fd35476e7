"""Let this process create no stream socket of the Unix family any more: `forbid`.

The sockets of the service manager, the bus, container managers and others that act for root are of this kind, and a
path cannot be hidden before it exists. A system call filter sees the type of a new socket, but no path (seccomp(2)).
By prctl(2) of the C library: SystemCallFilter= of systemd cannot look at arguments, and Debian's binding
(python3-seccomp) is missing on small systems. Open sockets are kept, also one that listens.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_NATIVE: Final = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198), "riscv64": (0xC00000F3, 198)}
"""Machine → AUDIT_ARCH_… (include/uapi/linux/audit.h) and the number of socket(2), which no other call stands for."""
_X32: Final = 0x40000000
"""Bit of the numbers of x32's calls, which have the architecture of x86_64's."""

_LOAD, _AND, _EQUAL, _SET, _RETURN = 0x20, 0x54, 0x15, 0x45, 0x06
"""BPF_LD|BPF_W|BPF_ABS, BPF_ALU|BPF_AND, BPF_JMP|BPF_JEQ, BPF_JMP|BPF_JSET, BPF_RET (linux/bpf_common.h)."""
_NUMBER, _ARCH, _FAMILY, _TYPE = 0, 4, 16, 24
"""Offsets in struct seccomp_data (include/uapi/linux/seccomp.h); of arguments the lower half (little-endian)."""
_TYPE_MASK: Final = 0xF
"""SOCK_TYPE_MASK (include/linux/net.h): the rest are flags."""
_AF_UNIX, _SOCK_STREAM = 1, 1
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
"""SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO."""
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2


class _Program(ctypes.Structure):
    """A struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def forbid() -> str:
    """Have socket(2) fail with EPERM for AF_UNIX and SOCK_STREAM, in this thread and all that it forks or executes.

    Returns why that is not possible, as a sentence: without PR_SET_NO_NEW_PRIVS and CAP_SYS_ADMIN, or on a machine with
    system calls unknown here; empty: it is done. Raises nothing.
    """
    # uname(2) has the kernel's machine. A program of 32 bits on it has other numbers, and would be refused every call.
    native = _NATIVE.get(os.uname().machine) if struct.calcsize("P") == 8 else None
    code = errno.ENOSYS
    if native is not None:
        program = _program(*native)
        argument = _Program(len(program) // 8, program)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(argument), 0, 0) == 0:
            return ""
        code = ctypes.get_errno()
    return f"Failed to forbid new stream sockets: {os.strerror(code)}; the daemon can still create them"


def _program(arch: int, number: int) -> bytes:
    """Return the filter as an array of struct sock_filter: code, instructions to skip if true and if false, operand."""
    lines = (
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 0, 9, arch),
        (_LOAD, 0, 0, _NUMBER),
        (_SET, 7, 0, _X32),
        (_EQUAL, 0, 5, number),
        (_LOAD, 0, 0, _FAMILY),
        (_EQUAL, 0, 3, _AF_UNIX),
        (_LOAD, 0, 0, _TYPE),
        (_AND, 0, 0, _TYPE_MASK),
        (_EQUAL, 1, 0, _SOCK_STREAM),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    )
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
