"""Which files a loader accepts: those of the module trees and configuration directories that only root can write.

The daemon, which is not trusted, names a path; the loader opens it and checks the open file, so no other file can take
its place between check and use. The path of the open file, links resolved, must lie below a configured directory. The
file and each directory from there down must be owned by root (or the uid of this process) and not be writable by group
or others.
"""

from __future__ import annotations

import errno
import os
import stat

from kmodd.dataclass import dataclass
from kmodd.host.paths import CONFIG_DIRS, SOFTDEP_FILES, TREES

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""O_NONBLOCK: opening a pipe, which is then refused, must not wait for its writer."""

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class Trusted:
    """The directories that a loader trusts, with `--root`."""

    trees: tuple[str, ...] = TREES
    """Module files must lie below one of these."""
    conf: tuple[str, ...] = CONFIG_DIRS
    """Files with install and remove commands must lie directly in one of these."""
    sys: str = "/sys"
    """Where sysfs is mounted."""

    @classmethod
    def below(cls, root: str) -> Trusted:
        """Return the usual directories of a system whose root directory is `root`."""
        return cls(tuple(root + tree for tree in TREES), tuple(root + folder for folder in CONFIG_DIRS), f"{root}/sys")

    def words(self) -> list[str]:
        """Return these directories as command-line options of `kmodd loader`."""
        options = [("--tree", self.trees), ("--conf", self.conf), ("--sys", (self.sys,))]
        return [word for option, paths in options for path in paths for word in (option, path)]

    def open_module(self, path: str) -> int:
        """Open a module file for reading and return the descriptor, which the caller closes.

        Raises OSError: EACCES if a loader does not accept the file, with the rule in strerror; else that of open(2).
        """
        fd = os.open(path, _FLAGS)
        try:
            real = _real_path(fd)
            if not _passes_quickly(fd, real, self.trees):
                _check(fd, real, _tree_of(real, self.trees))
        except OSError:
            os.close(fd)
            raise
        return fd

    def open_config(self, path: str) -> int:
        """Open a configuration file for reading and return the descriptor. Raises OSError as `open_module` does.

        A symbolic link in a configuration directory may point out of it, as Debian's alternatives do, if every
        directory of its target's path belongs to root alone. modules.softdep and modules.weakdep are accepted below a
        module tree.
        """

        def top_of(real: str) -> str:
            if os.path.basename(real) in SOFTDEP_FILES:  # written by depmod
                return _tree_of(real, self.trees)
            folder = os.path.realpath(os.path.dirname(path))
            if folder not in map(os.path.realpath, self.conf):
                raise OSError(errno.EACCES, f"is not in {_either(self.conf)}")
            _check_directories(folder, folder)
            return folder if os.path.dirname(real) == folder else "/"

        fd = os.open(path, _FLAGS)
        try:
            real = _real_path(fd)
            _check(fd, real, top_of(real))
        except OSError:
            os.close(fd)
            raise
        return fd


def _passes_quickly(fd: int, real: str, trees: tuple[str, ...]) -> bool:
    """Return whether the open file passes `_check` below one of the trees; False if `_check` has to decide.

    Takes a third of the time: a tree is recognized by device and inode, without resolving its links.
    """
    tops = []
    for tree in trees:
        try:
            status = os.stat(tree)
        except OSError:
            continue
        if stat.S_ISDIR(status.st_mode):
            tops.append((status.st_dev, status.st_ino))
    ours = (0, os.geteuid())
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return False
    folder = real
    while status.st_uid in ours and not status.st_mode & _OTHERS_WRITE:
        if (status.st_dev, status.st_ino) in tops:
            return True
        folder = folder[: folder.rfind("/")]
        if not folder:
            return False
        status = os.lstat(folder)
    return False


def _check(fd: int, real: str, top: str) -> None:
    """Raise OSError (EACCES) unless only root can write this regular file and the directories from `top` to it."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EACCES, "is not a regular file")
    _check_owner(status, "")
    _check_directories(top, os.path.dirname(real))


def _real_path(fd: int) -> str:
    """Return the path of the open file, links resolved (/proc/PID/fd in proc(5)). Raises OSError (EACCES)."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError as error:
        raise OSError(errno.EACCES, f"has no known path: /proc/self/fd: {error.strerror}") from None


def _tree_of(real: str, trees: tuple[str, ...]) -> str:
    """Return the resolved path of the tree that contains a resolved path. Raises OSError (EACCES) if there is none."""
    for tree in map(os.path.realpath, trees):
        if real.startswith(tree.rstrip("/") + "/"):
            return tree
    raise OSError(errno.EACCES, f"is {real}, which is not below {_either(trees)}")


def _check_directories(top: str, folder: str) -> None:
    """Raise OSError (EACCES) unless only root can write each directory from `top` down to `folder`."""
    while True:
        _check_owner(os.stat(folder, follow_symlinks=False), f"lies in {folder}, which ")
        if len(folder) <= len(top):
            return
        folder = os.path.dirname(folder)


def _check_owner(status: os.stat_result, subject: str) -> None:
    """Raise OSError (EACCES) unless only root, or the uid of this process, can write the file or directory.

    The sticky bit makes no difference: in such a directory others can still create files. `subject` begins the reason.
    """
    if status.st_uid not in (0, os.geteuid()):
        raise OSError(errno.EACCES, f"{subject}is owned by uid {status.st_uid}, not by root")
    if status.st_mode & _OTHERS_WRITE:
        who = "others" if status.st_mode & stat.S_IWOTH else f"its group, gid {status.st_gid}"
        raise OSError(errno.EACCES, f"{subject}is writable by {who}")


def _either(paths: tuple[str, ...]) -> str:
    return " or ".join(paths)
