"""Where the kernel looks for firmware, and whether a file is there (drivers/base/firmware_loader/main.c, fw_path)."""

from __future__ import annotations

import os

from kmodd.host.tree import Mark, mark_of, read_file
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

PATH = "/sys/module/firmware_class/parameters/path"
_SUFFIXES = ("", ".zst", ".xz")
"""A kernel that cannot unpack one of these passes it over; then the probe fails once more, and that is all."""


def firmware_dirs(root: str, release: str) -> tuple[str, ...]:
    """The directories in the kernel's order, without `root`; an administrator's own comes first."""
    own = decode(read_file(root + PATH) or b"").removesuffix("\n")
    usual = (f"{base}{below}" for base in ("/lib/firmware/updates", "/lib/firmware") for below in (f"/{release}", ""))
    return (*([own] if own else []), *usual)


def present(root: str, release: str, name: str) -> tuple[Mark, ...]:
    """The files that the kernel might find as `name` (`rtl_nic/rtl8168g-2.fw`), packed or not; none: it is missing."""
    if ".." in name.split("/"):
        return ()  # the kernel refuses such a name
    paths = (f"{root}{place}/{name}{suffix}" for place in firmware_dirs(root, release) for suffix in _SUFFIXES)
    return tuple(mark_of(path) for path in paths if os.path.isfile(path))


def watched_dirs(root: str, release: str, names: Iterable[str]) -> tuple[str, ...]:
    """The directories in which one of `names` may appear, with `root`: what is to be watched for them, each once."""
    places = firmware_dirs(root, release)
    paths = (f"{root}{place}/{name}" for name in names if ".." not in name.split("/") for place in places)
    return tuple(dict.fromkeys(os.path.dirname(path) for path in paths))
