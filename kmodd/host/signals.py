"""Block signals for a time: `SignalsBlocked`.

Calls pthread_sigmask(3) of the C library. That of the signal module converts each of 64 signal numbers to an enum
member on every call, which took a loader longer than the rest of a step, and importing the module takes a tenth of a
loader's start.
"""

from __future__ import annotations

import os

_SIGSET_BYTES = 128
"""Size of sigset_t in glibc and musl."""
_OTHER = {"alpha": (1, 3), "mips": (1, 3), "mips64": (1, 3), "sparc64": (1, 4)}
_USUAL = (0, 2)
"""SIG_BLOCK and SIG_SETMASK by machine type (arch/*/include/uapi/asm/signal.h, asm-generic/signal-defs.h)."""


class SignalsBlocked:
    """A context in which all signals but SIGKILL and SIGSTOP are blocked in this thread until its end.

    It can be entered repeatedly, but not nested. Entering raises OSError if the mask cannot be set, which
    pthread_sigmask(3) does not expect to happen.
    """

    def __init__(self) -> None:
        import ctypes  # here: a tool may have nothing to load

        sigset = ctypes.c_ubyte * _SIGSET_BYTES
        self._all, self._before = sigset(*[0xFF] * _SIGSET_BYTES), sigset()
        self._set_mask = ctypes.CDLL(None).pthread_sigmask
        self._block, self._set = _OTHER.get(os.uname().machine, _USUAL)

    def __enter__(self) -> None:
        if code := self._set_mask(self._block, self._all, self._before):
            raise OSError(code, "Failed to block signals")

    def __exit__(self, *_: object) -> None:
        self._set_mask(self._set, self._before, None)
