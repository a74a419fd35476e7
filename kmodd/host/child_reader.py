"""A child that asks what may never be answered: some files of sysfs take a device's lock, and nothing ends the wait."""

from __future__ import annotations

import contextlib
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def start(tell: Callable[[int], None]) -> tuple[int, int] | None:
    """Have a child call `tell` with a pipe to write to. The answer: its process and the other end; None: no child.

    The pipe ends when the child does. It is the caller's to close, and to wait for the child, which may never end.
    """
    ours = theirs = -1
    try:
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
    except OSError:  # no process is to be had, so nobody can say
        for end in (ours, theirs):
            with contextlib.suppress(OSError):
                os.close(end)
        return None
    if pid == 0:
        try:
            tell(theirs)
        finally:
            os._exit(0)  # whatever happens: it must not go on as a second program
    os.close(theirs)
    return pid, ours
