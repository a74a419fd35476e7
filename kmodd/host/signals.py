"""Signals that wait until something is over: `SignalsBlocked`.

By the C library's own call. The signal module's makes an enum member of each of 64 numbers on the way in and out, which
took a loader more time than all the rest of a step; and to import it takes a tenth of a loader's start.
"""

from __future__ import annotations

import os

_SIGSET_BYTES = 128
"""Of a sigset_t, in glibc and musl."""
_ODD = {"alpha": (1, 3), "mips": (1, 3), "mips64": (1, 3), "sparc64": (1, 4)}
_USUAL = (0, 2)
"""SIG_BLOCK and SIG_SETMASK by type of machine: arch/*/include/uapi/asm/signal.h, asm-generic/signal-defs.h."""


class SignalsBlocked:
    """A block in which no signal ends this thread, but SIGKILL; what came meanwhile counts at its end.

    It can be used any number of times, but not within itself. Entering raises OSError where the mask cannot be set,
    which pthread_sigmask(3) does not know.
    """

    def __init__(self) -> None:
        import ctypes  # a tool that in the end has nothing to do need not have it

        sigset = ctypes.c_ubyte * _SIGSET_BYTES
        self._all, self._before = sigset(*[0xFF] * _SIGSET_BYTES), sigset()
        self._set_mask = ctypes.CDLL(None).pthread_sigmask
        self._block, self._set = _ODD.get(os.uname().machine, _USUAL)

    def __enter__(self) -> None:
        if code := self._set_mask(self._block, self._all, self._before):
            raise OSError(code, "signals cannot be held back")

    def __exit__(self, *_: object) -> None:
        self._set_mask(self._set, self._before, None)
