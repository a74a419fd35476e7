"""Whether a module file is root's alone, links followed: `find`, which does not open it, and `open_file`, which does.

A link in a module tree is the will of root, who made it. Its target is root's alone if each link, each directory from
the root directory down, and the file are owned by root (or the uid of this process) and not writable by group or
others. A sticky directory, such as NixOS's store, may be writable: only root can rename or remove root's entries in
it. Without a link, the directories from the tree down count, and those above it do not.

The search ends at the first place that is not root's: a file system of a user (FUSE) may never answer.
"""

from __future__ import annotations

import errno
import os
import stat

from kmodd.dataclass import dataclass
from kmodd.host import regular_files

FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
"""O_NONBLOCK: opening a pipe, which is then refused, must not wait for its writer."""

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

_MAX_LINKS = 40
"""Links in one path (path_resolution(7))."""


@dataclass(frozen=True, slots=True)
class Found:
    """A module file as far as it was followed."""

    path: str
    """Its path, links resolved from the tree down."""
    why: str = ""
    """Why the file is not root's alone, as a predicate ("is owned by …"); empty: it is."""
    status: os.stat_result | None = None
    """Of the file; None if the search ended before it."""


def find(path: str, trees: tuple[str, ...]) -> Found:
    """Follow `path`, a file below one of `trees`, and return whether it is root's alone.

    Nothing is opened that could block. Raises OSError: that of lstat(2), as for a missing file.
    """
    if not is_named_below(path, trees):
        return Found(path, f"is not below {' or '.join(trees)}")
    tree = next(tree for tree in trees if path.startswith(tree + "/"))
    names = path[len(tree) :].split("/")
    here, status = tree, os.stat(tree)
    for name in names:
        if name in ("", "."):
            continue
        if why := offence(status):
            return Found(path, f"lies in {here}, which {why}")
        here += "/" + name
        status = os.lstat(here)
        if stat.S_ISLNK(status.st_mode):
            return _Search(tree, trees).follow(names)
    why = offence(status) or ("" if stat.S_ISREG(status.st_mode) else "is not a regular file")
    return Found(here, why, status)


def open_file(path: str, trees: tuple[str, ...]) -> int:
    """Open a module file below one of `trees` that is root's alone, and return the descriptor, which the caller closes.

    Raises OSError: EACCES if the file is not root's alone, with `Found.why` as strerror; else that of `find` and open.
    """
    found = find(path, trees)
    if found.why or found.status is None:
        raise OSError(errno.EACCES, found.why)
    fd = os.open(found.path, FLAGS | os.O_NOFOLLOW)
    status = os.fstat(fd)
    if (status.st_dev, status.st_ino) != (found.status.st_dev, found.status.st_ino):
        os.close(fd)
        raise OSError(errno.EACCES, "was replaced while it was opened")
    return fd


def open_regular(path: str) -> int:
    """Open a module file that belongs to anyone, without waiting, and return the descriptor, which the caller closes.

    Raises OSError: EACCES if it is not a regular file; else that of open(2).
    """
    try:
        return regular_files.open_regular(path)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EISDIR):
            raise OSError(errno.EACCES, "is not a regular file") from None
        raise


def is_named_below(path: str, trees: tuple[str, ...]) -> bool:
    """Return whether the name `path`, links not followed, lies below one of `trees`."""
    return any(path.startswith(tree + "/") for tree in trees) and ".." not in path.split("/")


def offence(status: os.stat_result) -> str:
    """Return why an entry of a directory is not root's alone, as a predicate; empty: it is."""
    if status.st_uid not in (0, os.geteuid()):
        return f"is owned by uid {status.st_uid}, not by root"
    mode = status.st_mode
    is_sticky = stat.S_ISDIR(mode) and mode & stat.S_ISVTX
    if stat.S_ISLNK(mode) or is_sticky or not mode & OTHERS_WRITE:
        return ""
    who = "others" if mode & stat.S_IWOTH else f"its group, gid {status.st_gid}"
    return f"is writable by {who}"


class _Search:
    """The walk along the links of one path."""

    def __init__(self, tree: str, trees: tuple[str, ...]) -> None:
        self._top = os.path.realpath(tree)
        self._tops = tuple(map(os.path.realpath, trees))
        self._mounts = {_mount_id("/"), _mount_id(self._top)}
        """Mounts whose file system answers."""

    def follow(self, names: list[str]) -> Found:
        """Return what these names below the tree lead to. Raises OSError: ENOENT, ELOOP."""
        real, left, links = self._top, names[::-1], 0
        status = os.stat(real)
        while left:
            name = left.pop()
            if name == "..":
                real = real[: real.rfind("/")] if real else ""
            if name in ("", ".", ".."):
                continue
            here = f"{real}/{name}"
            status, why = self._look(here)
            if why:
                return Found(here, _of_link("/".join((here, *left[::-1])), here, why) if links else why)
            if not stat.S_ISLNK(status.st_mode):
                real = here
                continue
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            target = os.readlink(here)
            real = "" if target.startswith("/") else real
            left += target.split("/")[::-1]
        if not stat.S_ISREG(status.st_mode):
            return Found(real, _of_link(real, real, "is not a regular file"))
        return Found(real, self._of_folders(real), status)

    def _look(self, path: str) -> tuple[os.stat_result, str]:
        """Return the status of a directory's entry and why it is not root's alone.

        With O_PATH neither a user's file system (FUSE) is asked nor an automount triggered.
        """
        nothing = os.stat_result((0,) * 10)
        try:
            fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except PermissionError as error:
            return nothing, f"cannot be examined: {error.strerror}"
        try:
            mount = _mount_id_of(fd)
            if mount not in self._mounts:
                kind = _file_system(mount)
                if not kind or kind.startswith("fuse") or kind == "autofs":
                    return nothing, f"is on a file system that may not answer ({kind or 'unknown'})"
                self._mounts.add(mount)
            status = os.fstat(fd)
        finally:
            os.close(fd)
        return status, offence(status)

    def _of_folders(self, real: str) -> str:
        """Return why the directories above a file, up to a tree or the root directory, are not root's alone."""
        folder = real
        while folder and folder not in self._tops:
            folder = folder[: folder.rfind("/")]
            if why := offence(os.lstat(folder or "/")):
                return _of_link(real, folder or "/", why)
        return ""


def _of_link(target: str, place: str, why: str) -> str:
    return f"is a link to {target}, {'which' if place == target else f'and {place}'} {why}"


def _mount_id(path: str) -> str:
    """Return the number of the mount of a file or directory as text; empty if it is unknown."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return _mount_id_of(fd)
    finally:
        os.close(fd)


def _mount_id_of(fd: int) -> str:
    """Return the number of the mount of an open file as text (/proc/PID/fdinfo in proc(5)); empty: unknown."""
    try:
        info = os.open(f"/proc/self/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(info, 1024).decode("ascii")
        finally:
            os.close(info)
    except OSError:
        return ""
    return text.partition("mnt_id:")[2].partition("\n")[0].strip()


def _file_system(mount: str) -> str:
    """Return the type of the file system of a mount (/proc/PID/mountinfo in proc(5)); empty: unknown."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return ""
    found = next((line for line in lines if line.split(" ", 1)[0] == mount), "")
    return found.partition(" - ")[2].split(" ")[0]
