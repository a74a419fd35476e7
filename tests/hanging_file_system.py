"""A file system of a user (FUSE) whose server never answers. Needs root and /dev/fuse."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MNT_DETACH = 2


@contextmanager
def mounted(folder: Path, uid: int = 65534) -> Iterator[None]:
    """Mount one at `folder` until the block ends, which fails all calls that wait for it."""
    libc = ctypes.CDLL(None, use_errno=True)
    server = os.open("/dev/fuse", os.O_RDWR)
    try:
        options = f"fd={server},rootmode=40000,user_id={uid},group_id={uid},allow_other"
        if libc.mount(b"hanging", os.fsencode(folder), b"fuse", 0, options.encode()):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(folder))
        yield
    finally:
        os.close(server)
        libc.umount2(os.fsencode(folder), _MNT_DETACH)
