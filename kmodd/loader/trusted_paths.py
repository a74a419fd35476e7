"""Which files a loader accepts: those of the module trees and configuration directories that only root can write.

The daemon, which is not trusted, names a path, and the loader checks what it leads to. A module file must be named
below a configured tree, and be root's alone (`host/file_owner.py`), unless kmodd.conf has ForeignModules=yes: its
status is read, then it is opened, and the open file must be the same one. A configuration file is opened, then checked;
its path, links resolved, must lie below a configured directory. The file and each directory from there down must be
owned by root (or the uid of this process) and not be writable by group or others.
"""

from __future__ import annotations

import errno
import os
import stat

from kmodd.dataclass import dataclass
from kmodd.host.file_owner import FLAGS, OTHERS_WRITE, is_named_below, open_file
from kmodd.host.paths import CONFIG_DIRS, SOFTDEP_FILES, TREES


@dataclass(frozen=True, slots=True)
class Trusted:
    """The directories that a loader trusts, with `--root`."""

    trees: tuple[str, ...] = TREES
    """Module files must lie below one of these."""
    conf: tuple[str, ...] = CONFIG_DIRS
    """Files with install and remove commands must lie directly in one of these."""
    sys: str = "/sys"
    """Where sysfs is mounted."""
    root: str = ""
    """Prefix of the path of kmodd.conf."""

    @classmethod
    def below(cls, root: str) -> Trusted:
        """Return the usual directories of a system whose root directory is `root`."""
        trees, conf = tuple(root + tree for tree in TREES), tuple(root + folder for folder in CONFIG_DIRS)
        return cls(trees, conf, f"{root}/sys", root)

    def words(self) -> list[str]:
        """Return these directories as command-line options of `kmodd loader`."""
        options = [("--tree", self.trees), ("--conf", self.conf), ("--sys", (self.sys,)), ("--root", (self.root,))]
        return [word for option, paths in options for path in paths for word in (option, path)]

    def open_module(self, path: str) -> int:
        """Open a module file for reading and return the descriptor, which the caller closes.

        Raises OSError: EACCES if a loader does not accept the file, with the rule in strerror; else that of open(2).
        """
        try:
            return open_file(path, self.trees)
        except OSError as error:
            if error.errno != errno.EACCES or not is_named_below(path, self.trees) or not self._takes_foreign():
                raise
        from kmodd.loader.foreign_file import open_in_child  # only here: hardly any loader needs it

        return open_in_child(path)

    def _takes_foreign(self) -> bool:
        """Return whether kmodd.conf says so, in a directory that the daemon cannot write."""
        from kmodd.host.config_files import LASTING_DIRS, read_settings

        return read_settings(self.root, LASTING_DIRS).foreign_modules

    def open_config(self, path: str) -> int:
        """Open a configuration file for reading and return the descriptor. Raises OSError as `open_module` does.

        A symbolic link in a configuration directory may point out of it, as Debian's alternatives do, if every
        directory of its target's path belongs to root alone. modules.softdep and modules.weakdep are accepted below a
        module tree.
        """

        # Before anything is opened, as opening may have an effect, and by the name alone: a link in its place could
        # lead to different directories for the open and for the check.
        if os.path.basename(path) in SOFTDEP_FILES:
            if not is_named_below(path, self.trees):
                raise OSError(errno.EACCES, f"is not below {_either(self.trees)}")
        elif os.path.dirname(path) not in self.conf:
            raise OSError(errno.EACCES, f"is not in {_either(self.conf)}")

        def top_of(real: str) -> str:
            if os.path.basename(real) in SOFTDEP_FILES:  # written by depmod
                return _tree_of(real, self.trees)
            folder = os.path.realpath(os.path.dirname(path))
            if folder not in map(os.path.realpath, self.conf):
                raise OSError(errno.EACCES, f"is not in {_either(self.conf)}")
            _check_directories(folder, folder)
            return folder if os.path.dirname(real) == folder else "/"

        fd = os.open(path, FLAGS)
        try:
            real = _real_path(fd)
            _check(fd, real, top_of(real))
        except OSError:
            os.close(fd)
            raise
        return fd


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
    if status.st_mode & OTHERS_WRITE:
        who = "others" if status.st_mode & stat.S_IWOTH else f"its group, gid {status.st_gid}"
        raise OSError(errno.EACCES, f"{subject}is writable by {who}")


def _either(paths: tuple[str, ...]) -> str:
    return " or ".join(paths)
