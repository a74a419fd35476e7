"""The directory for the control socket of a daemon that a user runs, not root."""

from __future__ import annotations

import os
import stat


def own_directory(*, create: bool = False) -> str:
    """Return XDG_RUNTIME_DIR, else `/tmp/kmodd-UID` if that is the user's alone; empty if there is neither.

    create: make that directory. Any user may make one of this name: another one's is never used.
    """
    if given := os.environ.get("XDG_RUNTIME_DIR"):
        return given
    path = f"/tmp/kmodd-{os.geteuid()}"
    try:
        if create and not os.path.lexists(path):
            os.mkdir(path, 0o700)
        found = os.lstat(path)
    except OSError:
        return ""
    is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
    return path if is_own else ""
