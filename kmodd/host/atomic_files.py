"""Replacing a set of files in one directory: all of them, or none.

The new files are written beside the old ones and brought to the disk; nothing is replaced before all of that succeeded.
Then they are renamed into place one right behind the other, with signals held back. A directory cannot be swapped
whole, as the modules lie in it too, and links into a folder of their own would not survive other tools: so a reader
that opens one file after the other can still meet the boundary, some 100 µs wide. kmodd's own look twice (`snapshot` of
`Tree`). For others the order counts: what a module needs comes in before the aliases that lead to it (`depmod_output`),
so the worst is a device whose new driver is not found yet, as before depmod. If a rename fails, those done are undone.
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
    """Put `files`, base names and contents, into `directory`, in order. Raises OSError, and then nothing changed."""
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
    """Replace one file that nobody depends on: not brought to the disk. Raises OSError, and then nothing changed."""
    beside = f"{path}.{os.getpid()}.{time.time_ns()}"
    try:
        _write(beside, data, mode, sync=False)
        os.replace(beside, path)
    finally:
        _remove([beside])


def read_if_there(path: str) -> bytes | None:
    """The bytes of a file, or None where it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except (OSError, ValueError):
        return None


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
    """Rename each; where one fails, put back what stood there before those that succeeded."""
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
    """Keep a file under a second name; where there are no hard links, its bytes."""
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
    """Bring the new names to the disk; a filesystem that cannot do that for a directory is left alone."""
    with contextlib.suppress(OSError):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
