"""Firmware files: the kernel's search path (drivers/base/firmware_loader/main.c, fw_path), and which are present."""

from __future__ import annotations

import os

from kmodd.host.regular_files import read_file
from kmodd.host.tree import mark_of
from kmodd.index.catalog import Mark
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

PATH = "/sys/module/firmware_class/parameters/path"
_SUFFIXES = ("", ".zst", ".xz")
"""A kernel without support for a compression ignores such a file; then a probe for it fails once more."""


def firmware_dirs(root: str, release: str) -> tuple[str, ...]:
    """Return the directories in the kernel's order, without `root`; the one in firmware_class.path comes first."""
    own = decode(read_file(root + PATH) or b"").removesuffix("\n")
    usual = (f"{base}{below}" for base in ("/lib/firmware/updates", "/lib/firmware") for below in (f"/{release}", ""))
    return (*([own] if own else []), *usual)


def present(root: str, release: str, name: str) -> tuple[Mark, ...]:
    """Return the marks of the files for `name` (`rtl_nic/rtl8168g-2.fw`), compressed or not; () if missing."""
    if ".." in name.split("/"):
        return ()  # the kernel refuses such a name
    paths = (f"{root}{place}/{name}{suffix}" for place in firmware_dirs(root, release) for suffix in _SUFFIXES)
    return tuple(mark_of(path) for path in paths if os.path.isfile(path))


def watched_dirs(root: str, release: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return the directories to watch, with `root`, in which a file of `names` may appear; each once."""
    places = firmware_dirs(root, release)
    paths = (f"{root}{place}/{name}" for name in names if ".." not in name.split("/") for place in places)
    return tuple(dict.fromkeys(os.path.dirname(path) for path in paths))
