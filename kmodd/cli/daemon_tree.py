"""The module tree for a verb that only reads: that of the daemon that runs here, so that both give one answer."""

from __future__ import annotations

import contextlib
import os

from kmodd.config.modprobe_d import DROP_IN, Extensions
from kmodd.host.own_directory import own_directory
from kmodd.host.paths import CONTROL_SOCKET, TREES
from kmodd.host.tree import Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LIMIT = 2.0
"""Seconds to wait for the daemon, which is busy for less."""


def tree_for(root: str, release: str | None, extensions: Extensions = DROP_IN) -> Tree:
    """Return the module tree that the options name; without any, that of the daemon, else the usual one.

    The daemon of `make run` has another one than the usual where this kernel has none.
    """
    if not (root or release) and (status := daemon_status()):
        found, directory = str(status["release"]), str(status.get("directory", ""))
        for tree in TREES:
            if not status["root"] and directory.endswith(f"{tree}/{found}"):
                prefix = directory.removesuffix(f"{tree}/{found}") or None
                return Tree(release=found, module_dir=prefix, extensions=extensions)
    return Tree(root=root, release=release, extensions=extensions)


def daemon_status() -> dict[str, Any] | None:
    """Return the state of the daemon of this machine, else of one that the user runs; None: there is none."""
    for path in (CONTROL_SOCKET, os.path.join(own_directory() or "/", "io.kmodd")):
        if os.path.exists(path):
            from kmodd.cli.client import NotRunning, Refused, call  # only if there is a daemon: this takes 10 ms

            with contextlib.suppress(NotRunning, Refused, ValueError):
                return call("Status", path, limit=_LIMIT)
    return None
