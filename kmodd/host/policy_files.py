"""policy.d and the flags that its rules ask for, read from their folders."""

from __future__ import annotations

import os
import stat

from kmodd.config import modprobe_d, policy_d
from kmodd.config.modprobe_d import ConfFile
from kmodd.config.policy_d import Parsed
from kmodd.errors import Problem, Where
from kmodd.host.config_files import CONF_DIRS, FLAGS_DIR, names_in
from kmodd.host.tree import read_file


def read_rules(root: str) -> Parsed:
    """The rules of policy.d below `root`. A file that cannot be read is a problem: without it more might be allowed."""
    folders = [f"{directory}/policy.d" for directory in CONF_DIRS]
    paths = modprobe_d.ordered([(folder, names_in(root + folder)) for folder in folders], suffixes=(".conf",))
    files = []
    unreadable = []
    for path in paths:
        data = read_file(_opened(root, path))
        if data is None:
            unreadable.append(Problem(Where(path, 0), 0, "", "expected a file that can be read, or none"))
        else:
            files.append(ConfFile(path, data.decode("utf-8", "surrogateescape")))
    parsed = policy_d.parse(files)
    return Parsed(parsed.rules, (*unreadable, *parsed.problems))


def read_flags(root: str) -> frozenset[str]:
    """The flags that are set now. One counts if it is root's (or ours), in a folder that nobody else writes to."""
    folder = root + FLAGS_DIR
    try:
        about = os.lstat(folder)
    except OSError:
        return frozenset()
    if not stat.S_ISDIR(about.st_mode) or not _trusted(about) or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return frozenset()
    return frozenset(name for name in names_in(folder) if _is_flag(f"{folder}/{name}"))


def _opened(root: str, path: str) -> str:
    """Where to open a file; a link to an absolute path stays below the root, as it would be on that machine."""
    try:
        target = os.readlink(root + path)
    except OSError:
        return root + path
    return root + target if target.startswith("/") and target != os.devnull else root + path


def _is_flag(path: str) -> bool:
    try:
        about = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(about.st_mode) and _trusted(about)


def _trusted(about: os.stat_result) -> bool:
    return about.st_uid in (0, os.geteuid())
