"""Read kmodd.conf, policy.d with its flags, and modules-load.d from their directories."""

from __future__ import annotations

import os
import stat

from kmodd.config import cmdline, kmodd_conf, modprobe_d, modules_load_d, policy_d
from kmodd.config.kmodd_conf import Settings
from kmodd.config.modprobe_d import ConfFile
from kmodd.config.modules_load_d import BootList
from kmodd.config.policy_d import Parsed
from kmodd.dataclass import replace
from kmodd.errors import Problem, Where
from kmodd.host.regular_files import names_in, read_file
from kmodd.host.tree import mark_of
from kmodd.index.catalog import Mark
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

CONF_DIRS = ("/etc/kmodd", "/run/kmodd", "/usr/local/lib/kmodd", "/usr/lib/kmodd")
"""Highest priority first. The first kmodd.conf is read, then the drop-ins of all (systemd.unit(5))."""

LASTING_DIRS = tuple(directory for directory in CONF_DIRS if not directory.startswith("/run/"))
"""Those that the daemon cannot write."""

FLAGS_DIR = "/run/kmodd/flags"
"""A file NAME in it sets `flag=NAME` of policy.d."""

BOOT_DIRS = ("/etc/modules-load.d", "/run/modules-load.d", "/usr/local/lib/modules-load.d", "/usr/lib/modules-load.d")
"""modules-load.d(5)."""


def read_settings(root: str, directories: tuple[str, ...] = CONF_DIRS) -> Settings:
    """Return the settings of kmodd.conf and its drop-ins below `root`, with the problems found in them.

    With a file that cannot be read, the intended mode of the policy is unknown.
    """
    mains = [f"{directory}/kmodd.conf" for directory in directories]
    main = next((path for path in mains if os.path.lexists(root + path)), None)
    folders = [f"{directory}/kmodd.conf.d" for directory in directories]
    files, unreadable = _all_files(root, folders, [main] if main else [])
    settings = kmodd_conf.parse(files)
    if not unreadable:
        return settings
    return replace(settings, problems=(*unreadable, *settings.problems), broken=True, policy_broken=True)


def settings_directories(root: str) -> list[str]:
    """Return the directories of kmodd.conf, its drop-ins, policy.d and flags, with `root`."""
    return [*_folders(root), root + FLAGS_DIR]


def settings_marks(root: str) -> tuple[tuple[str, Mark], ...]:
    """Return path and mark of kmodd.conf, each drop-in and each file of policy.d, to detect a change."""
    paths = [f"{folder}/{name}" for folder in _folders(root) for name in names_in(folder)]
    return tuple((path, mark_of(path)) for path in paths if path.endswith(".conf"))


def _folders(root: str) -> list[str]:
    return [f"{root}{directory}{inner}" for directory in CONF_DIRS for inner in ("", "/kmodd.conf.d", "/policy.d")]


def read_boot_list(root: str) -> BootList:
    """Return what to load at boot: from the kernel command line, /etc/modules and modules-load.d below `root`."""
    paths = modules_load_d.ordered(
        [(directory, names_in(root + directory)) for directory in BOOT_DIRS],
        etc_modules=os.path.isfile(root + modules_load_d.ETC_MODULES),
    )
    line = read_file(root + cmdline.PATH)
    command_line = cmdline.parse(decode(line)) if line is not None else cmdline.EMPTY
    return modules_load_d.parse(_files(root, paths), command_line)


def read_rules(root: str) -> Parsed:
    """Return the rules of policy.d below `root`, with the problems found.

    A file or directory that cannot be read is a problem too: without its rules, more might be allowed.
    """
    files, unreadable = _all_files(root, [f"{directory}/policy.d" for directory in CONF_DIRS])
    parsed = policy_d.parse(files)
    return Parsed(parsed.rules, (*unreadable, *parsed.problems))


def read_flags(root: str) -> frozenset[str]:
    """Return the names of the flags that are set.

    A flag counts if its file, and the directory, belong to root or the uid of this process, and the directory is not
    writable by group or others.
    """
    folder = root + FLAGS_DIR
    try:
        about = os.lstat(folder)
    except OSError:
        return frozenset()
    if not stat.S_ISDIR(about.st_mode) or not _trusted(about) or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return frozenset()
    return frozenset(name for name in names_in(folder) if _is_flag(f"{folder}/{name}"))


def _all_files(root: str, folders: list[str], first: list[str] | None = None) -> tuple[list[ConfFile], list[Problem]]:
    """Return the files `first` and those of the directories, in order, and what cannot be read."""
    files, unreadable, places = [], [], []
    for folder in folders:
        try:
            places.append((folder, os.listdir(root + folder)))
        except OSError as error:
            if not isinstance(error, FileNotFoundError) or any(map(os.path.islink, _upwards(root, folder))):
                expected = f"expected a readable directory, or none: {error.strerror}"
                unreadable.append(Problem(Where(folder, 0), 0, "", expected))
    for path in [*(first or []), *modprobe_d.ordered(places, suffixes=(".conf",))]:
        data = read_file(_below_root(root, path))
        if data is None:
            unreadable.append(Problem(Where(path, 0), 0, "", "expected a readable file, or none"))
        else:
            files.append(ConfFile(path, decode(data)))
    return files, unreadable


def _upwards(root: str, folder: str) -> tuple[str, str]:
    """Return the path of a directory and of the one above, either of which may be a link that leads nowhere."""
    return root + folder, root + os.path.dirname(folder)


def secret_files(paths: Iterable[str], root: str) -> frozenset[str]:
    """Return the files, without root, that not all users can read by their modes; a missing one counts, too."""
    return frozenset(path for path in paths if not _is_public(path, root))


def _is_public(path: str, root: str) -> bool:
    """Return whether all users can read a file and enter the directories to it, below `root`."""
    top = os.path.realpath(root or "/")
    try:
        for place in (os.path.normpath(f"{top}/{path}"), os.path.realpath(root + path)):
            if not os.stat(place).st_mode & stat.S_IROTH:
                return False
            folder = os.path.dirname(place)
            while len(folder) > len(top):
                if not os.stat(folder).st_mode & stat.S_IXOTH:
                    return False
                folder = os.path.dirname(folder)
    except OSError:
        return False
    return True


def _below_root(root: str, path: str) -> str:
    """Return the path to open for `path`; an absolute link target is taken below `root`, as on the machine itself."""
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


def _files(root: str, paths: list[str] | tuple[str, ...]) -> list[ConfFile]:
    read = [(path, read_file(root + path)) for path in paths]
    return [ConfFile(path, decode(data)) for path, data in read if data is not None]
