"""Paths of module trees, modprobe.d and kmodd's sockets, as printed: without `--root`."""

from __future__ import annotations

CONFIG_DIRS = (
    "/etc/modprobe.d",
    "/run/modprobe.d",
    "/usr/local/lib/modprobe.d",
    "/usr/lib/modprobe.d",
    "/lib/modprobe.d",
)
"""Highest priority first (modprobe.d(5)). With a merged /usr the last two are one directory, which is read once."""

DEPMOD_DIRS = ("/etc/depmod.d", "/run/depmod.d", "/usr/local/lib/depmod.d", "/usr/lib/depmod.d", "/lib/depmod.d")
"""Highest priority first (depmod.d(5)). With a merged /usr the last two are one directory."""

TREES = ("/lib/modules", "/usr/lib/modules")
SOFTDEP_FILES = ("modules.softdep", "modules.weakdep")
"""Configuration that depmod writes into a module tree."""

CONTROL_SOCKET = "/run/kmodd/io.kmodd"
LOADER_SOCKET = "/run/kmodd/loader"
"""kmodd-loader.socket."""
COMMAND_SOCKET = "/run/kmodd/command"
"""kmodd-command.socket."""
REQUESTER_SOCKET = "/run/kmodd/requester"
"""kmodd-requester.socket."""
