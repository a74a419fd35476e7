"""Where a system keeps its module trees and its configuration, as printed: without `--root`; and our sockets."""

from __future__ import annotations

CONFIG_DIRS = (
    "/etc/modprobe.d",
    "/run/modprobe.d",
    "/usr/local/lib/modprobe.d",
    "/usr/lib/modprobe.d",
    "/lib/modprobe.d",
)
"""Highest priority first (modprobe.d(5)). With a merged /usr the last two are one directory, found and read once."""

TREES = ("/lib/modules", "/usr/lib/modules")
SOFTDEP_FILES = ("modules.softdep", "modules.weakdep")
"""Configuration that depmod leaves in a tree."""

CONTROL_SOCKET = "/run/kmodd/io.kmodd"
LOADER_SOCKET = "/run/kmodd/loader"
"""systemd's (kmodd-loader.socket)."""
