"""What a loader takes: files of the configured trees and configuration directories, if nobody but root can write them.

The daemon names a file; the loader has the capability, so it looks for itself. Whatever it looks at is the file that
it has opened: nothing can be put in its place between the look and the use.
"""

from __future__ import annotations

import errno
import os
import stat

from kmodd.dataclass import dataclass
from kmodd.host.paths import CONFIG_DIRS, SOFTDEP_FILES, TREES

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""O_NONBLOCK: to open a pipe, and find that it is none of ours, must not wait for its writer."""


_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True, slots=True)
class Trusted:
    """The places of one loader, as they are to be opened."""

    trees: tuple[str, ...] = TREES
    """Module files stand below these."""
    conf: tuple[str, ...] = CONFIG_DIRS
    """Files with install and remove commands stand in these."""
    sys: str = "/sys"

    @classmethod
    def below(cls, root: str) -> Trusted:
        """The usual places of a system whose root directory is `root`."""
        return cls(tuple(root + tree for tree in TREES), tuple(root + folder for folder in CONFIG_DIRS), f"{root}/sys")

    def words(self) -> list[str]:
        """These places as options of `kmodd loader`."""
        options = [("--tree", self.trees), ("--conf", self.conf), ("--sys", (self.sys,))]
        return [word for option, paths in options for path in paths for word in (option, path)]

    def open_module(self, path: str) -> int:
        """Open a module file to read; the descriptor.

        Raises OSError: EACCES where it is none that a loader takes, with the rule as its words; else that of open(2).
        """
        fd = os.open(path, _FLAGS)
        try:
            real = _real(fd)
            if not _is_below(fd, real, self.trees):
                _check(fd, real, _below(real, self.trees))
        except OSError:
            os.close(fd)
            raise
        return fd

    def open_config(self, path: str) -> int:
        """Open a configuration file likewise.

        A link in a configuration directory may lead out of it (Debian's alternatives make such): root has made it, and
        no directory on the way to its target may be another's.
        """

        def top_of(real: str) -> str:
            is_depmods = os.path.basename(real) in SOFTDEP_FILES
            if is_depmods:
                return _below(real, self.trees)
            folder = os.path.realpath(os.path.dirname(path))
            if folder not in map(os.path.realpath, self.conf):
                raise OSError(errno.EACCES, f"is not in {_either(self.conf)}")
            _no_others_below(folder, folder)
            return folder if os.path.dirname(real) == folder else "/"

        fd = os.open(path, _FLAGS)
        try:
            real = _real(fd)
            _check(fd, real, top_of(real))
        except OSError:
            os.close(fd)
            raise
        return fd


def _is_below(fd: int, real: str, trees: tuple[str, ...]) -> bool:
    """The open file passes `_check` below one of the trees. False: it may all the same, or what is wrong is told there.

    A third of the time: a tree is known by device and inode, so its links need not be followed, and nothing is asked
    twice.
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
    """It is a file of root's alone, and so is each directory from `top` down to it. Raises OSError."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EACCES, "is not a regular file")
    _no_others(status, "")
    _no_others_below(top, os.path.dirname(real))


def _real(fd: int) -> str:
    """Where the open file lies, all links followed (proc(5), /proc/PID/fd)."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError as error:
        raise OSError(errno.EACCES, f"lies nobody knows where: /proc/self/fd: {error.strerror}") from None


def _below(real: str, trees: tuple[str, ...]) -> str:
    """The real path of the tree that a real path is below."""
    for tree in map(os.path.realpath, trees):
        if real.startswith(tree.rstrip("/") + "/"):
            return tree
    raise OSError(errno.EACCES, f"is not below {_either(trees)}: it is {real}")


def _no_others_below(top: str, folder: str) -> None:
    """Each directory from `top` down to `folder` is root's alone."""
    while True:
        _no_others(os.stat(folder, follow_symlinks=False), f"lies in {folder}, which ")
        if len(folder) <= len(top):
            return
        folder = os.path.dirname(folder)


def _no_others(status: os.stat_result, subject: str) -> None:
    """Nobody can write it but root, or whoever this loader runs as. The sticky bit is no excuse for a directory."""
    if status.st_uid not in (0, os.geteuid()):
        raise OSError(errno.EACCES, f"{subject}is owned by uid {status.st_uid}, not by root")
    if status.st_mode & _OTHERS_WRITE:
        who = "others" if status.st_mode & stat.S_IWOTH else f"its group, gid {status.st_gid}"
        raise OSError(errno.EACCES, f"{subject}is writable by {who}")


def _either(paths: tuple[str, ...]) -> str:
    return " or ".join(paths)
