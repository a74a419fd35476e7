"""Read in a child process what may block forever: some sysfs files take a device's lock, and no signal ends that."""

from __future__ import annotations

import contextlib
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def start(read: Callable[[int], None]) -> tuple[int, int] | None:
    """Fork a child that calls `read` with the write end of a pipe.

    Returns the child's pid and the read end, both for the caller to wait for and close; None if there is no process or
    descriptor left. The pipe ends when the child does, which may be never.
    """
    ours = theirs = -1
    try:
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
    except OSError:
        for end in (ours, theirs):
            with contextlib.suppress(OSError):
                os.close(end)
        return None
    if pid == 0:
        try:
            read(theirs)
        finally:
            os._exit(0)  # also after an exception: the child must not continue in the caller's code
    os.close(theirs)
    return pid, ours
