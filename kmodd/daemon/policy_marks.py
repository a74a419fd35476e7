"""What of the policy outlives the daemon: files below /run that the kernel's helper and the next daemon read."""

from __future__ import annotations

import os

from kmodd.engine.events import PolicyMarks

CLOSED = "/run/kmodd/closed"
"""While this exists, the kernel's helper refuses what the daemon does not answer."""
SEALED = "/run/kmodd/sealed"
"""The seal lasts until the next boot."""
BOOTED = "/run/kmodd/booted"
"""All devices of this boot were answered."""


def read_marks() -> PolicyMarks:
    """What an earlier daemon of this boot left."""
    return PolicyMarks(sealed=os.path.exists(SEALED), closed=os.path.exists(CLOSED), booted=os.path.exists(BOOTED))


def write_marks(marks: PolicyMarks) -> list[str]:
    """Create and remove the files. Returns a message for each that could not be."""
    failed = []
    for path, is_set in ((SEALED, marks.sealed), (CLOSED, marks.closed), (BOOTED, marks.booted)):
        try:
            if is_set and not os.path.exists(path):  # what exists may be a FIFO, whose opening waits
                with open(path, "x"):
                    pass
            elif not is_set and os.path.lexists(path):
                os.unlink(path)
        except OSError as error:
            action = "create" if is_set else "remove"
            failed.append(f"Failed to {action} {path}: {error.strerror}; the next daemon does not know of it")
    return failed
