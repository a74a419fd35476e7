"""Read the build ID of a loaded module from sysfs: `read_build_id`."""

from __future__ import annotations

import os

from kmodd.kernel.module_notes import build_id_of_notes

NOTE = "notes/.note.gnu.build-id"
"""Below the directory of a module (module_notes_attrs in the kernel's kernel/module/sysfs.c)."""
_LIMIT = 4096
"""Bytes that are read; such a section has 36."""


def read_build_id(name: str, sys: str = "/sys") -> str:
    """Return the build ID of a loaded module as hexadecimal digits; empty: the kernel shows none.

    sys: where sysfs is mounted.
    """
    try:
        fd = os.open(f"{sys}/module/{name}/{NOTE}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):
        return ""
    try:
        return build_id_of_notes(os.read(fd, _LIMIT)).hex()
    except OSError:
        return ""
    finally:
        os.close(fd)
