"""Signals that wait until something is over: `uninterrupted`.

By the C library's own call. The signal module's makes an enum member of each of 64 numbers on the way in and out, which
took a loader more time than all the rest of a step.
"""

from __future__ import annotations

import contextlib
import functools
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from ctypes import Array, c_ubyte

_SIGSET_BYTES = 128
"""Of a sigset_t, in glibc and musl."""


@functools.cache
def _parts() -> tuple[Callable[..., int], Array[c_ubyte], type[Array[c_ubyte]]]:
    """pthread_sigmask, the set of all signals, and what makes a set."""
    import ctypes  # a tool that in the end has nothing to do need not have it

    kind = ctypes.c_ubyte * _SIGSET_BYTES
    return ctypes.CDLL(None).pthread_sigmask, kind(*[0xFF] * _SIGSET_BYTES), kind


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """No signal ends this thread within the block, but SIGKILL; what came meanwhile counts at its end.

    Raises OSError where the mask cannot be set, which pthread_sigmask(3) does not know.
    """
    set_mask, everything, kind = _parts()
    before = kind()
    if code := set_mask(int(signal.SIG_BLOCK), everything, before):
        raise OSError(code, "signals cannot be held back")
    try:
        yield
    finally:
        set_mask(int(signal.SIG_SETMASK), before, None)
