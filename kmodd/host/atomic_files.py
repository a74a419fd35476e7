"""Replace a set of files in one directory: all of them, or none.

The new files are written beside the old ones and synced first. Then they are renamed, one right after the other, with
signals blocked; if a rename fails, the previous ones are undone. The directory itself cannot be exchanged, as it
contains the modules too, and other tools would replace symbolic links. So a process that reads several files may see
old and new ones for some 100 µs. kmodd reads again in that case (`Tree.snapshot`). For other programs the order of
`depmod_output` matters: modules.dep comes before the aliases, so at worst a new driver is not found yet, as before
depmod ran.
"""

from __future__ import annotations

import contextlib
import os
import time

from kmodd.host.signals import SignalsBlocked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def replace_all(directory: str, files: Sequence[tuple[str, bytes]], mode: int = 0o644) -> None:
    """Replace `files`, base names and contents, in `directory`, in order. Raises OSError with nothing changed."""
    suffix = f".{os.getpid()}.{time.time_ns()}"
    new = [(f"{directory}/{name}{suffix}", f"{directory}/{name}") for name, _ in files]
    try:
        for (path, _), (_, data) in zip(new, files, strict=True):
            _write(path, data, mode)
        with SignalsBlocked():
            _rename_all(new)
    finally:
        _remove(path for path, _ in new)
    _sync(directory)


def write_aside(path: str, data: bytes, mode: int = 0o644) -> None:
    """Replace one file that may be lost in a crash, without syncing. Raises OSError with nothing changed."""
    beside = f"{path}.{os.getpid()}.{time.time_ns()}"
    try:
        _write(beside, data, mode, sync=False)
        os.replace(beside, path)
    finally:
        _remove([beside])


def _write(path: str, data: bytes, mode: int, sync: bool = True) -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def _rename_all(pairs: Sequence[tuple[str, str]]) -> None:
    """Rename each path; if one fails, restore what the previous ones replaced. Raises OSError."""
    kept: list[tuple[str, str]] = []
    done = []
    try:
        for path, place in pairs:
            with contextlib.suppress(FileNotFoundError):
                _keep(place, path + ".old")
                kept.append((path + ".old", place))
        for path, place in pairs:
            os.replace(path, place)
            done.append(place)
    except OSError:
        before = {place: path for path, place in kept}
        for place in done:
            if place in before:
                os.replace(before[place], place)
            else:
                os.unlink(place)
        raise
    finally:
        _remove(path for path, _ in kept)


def _keep(place: str, copy: str) -> None:
    """Hard-link a file to a second name, or copy it on a filesystem without hard links."""
    try:
        os.link(place, copy)
    except FileNotFoundError:
        raise
    except OSError:
        with open(place, "rb") as file:
            _write(copy, file.read(), os.fstat(file.fileno()).st_mode & 0o7777)


def _remove(paths: Iterable[str]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _sync(directory: str) -> None:
    """Sync the directory entries, on filesystems that support it."""
    with contextlib.suppress(OSError):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
