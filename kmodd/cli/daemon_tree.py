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
    status = None if root or release else daemon_status()
    return (tree_of(status, extensions) if status else None) or Tree(root=root, release=release, extensions=extensions)


def tree_of(status: dict[str, Any], extensions: Extensions = DROP_IN) -> Tree | None:
    """Return the module tree of a daemon by its state; None: it is below another root."""
    release, directory = str(status["release"]), str(status.get("directory", ""))
    for tree in TREES:
        if not status["root"] and directory.endswith(f"{tree}/{release}"):
            prefix = directory.removesuffix(f"{tree}/{release}") or None
            return Tree(release=release, module_dir=prefix, extensions=extensions)
    return None


def daemon_status() -> dict[str, Any] | None:
    """Return the state of the daemon of this machine, else of one that the user runs; None: there is none."""
    for path in (CONTROL_SOCKET, os.path.join(own_directory() or "/", "io.kmodd")):
        if os.path.exists(path):
            from kmodd.cli.client import NotRunning, Refused, call  # only if there is a daemon: this takes 10 ms

            with contextlib.suppress(NotRunning, Refused, ValueError):
                return call("Status", path, limit=_LIMIT)
    return None
