"""Find the module files below a directory."""

from __future__ import annotations

import errno
import os
import stat

from kmodd.config import depmod_d
from kmodd.config.depmod_d import DepmodConfig
from kmodd.dataclass import dataclass
from kmodd.host.module_reader import is_module_file
from kmodd.modfile.depmod_cache import Stamp
from kmodd.modfile.depmod_graph import Complaint, Member, member

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

Place = tuple[int, int]
"""Device and inode of a directory."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A module file and its stamp."""

    member: Member
    stamp: Stamp


def stamp_of(status: os.stat_result) -> Stamp:
    """Return what identifies the state of a file: inode, size, mtime and ctime in ns."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class Search:
    """A search for all modules of a module directory; depmod.d decides between files of one module name.

    As depmod_modules_search of kmod's depmod.c.
    """

    def __init__(self, directory: str, config: DepmodConfig, root: str = "") -> None:
        """`directory`: as printed, without `root`, the prefix of each path that is opened."""
        self._directory = directory
        self._config = config
        self._root = root
        self._excluded = frozenset((*depmod_d.ALWAYS_EXCLUDED, *config.excludes))
        self._found: dict[str, Seen] = {}
        self.complaints: list[Complaint] = []

    def run(self) -> list[Seen]:
        """Return the files, in the order of the filesystem. Raises OSError if `directory` cannot be read."""
        self._search(self._directory)
        for external in self._config.externals:
            try:
                self._search(external)
            except OSError:
                continue
        return list(self._found.values())

    def _search(self, directory: str) -> None:
        try:
            status = os.stat(self._root + directory)
            entries = os.scandir(self._root + directory)
        except OSError as error:
            self._complain(f"could not open directory {directory}: {os.strerror(error.errno or 0)}")
            raise
        with entries:
            self._walk(directory, entries, ((status.st_dev, status.st_ino),))

    def _walk(self, directory: str, entries: Iterator[os.DirEntry[str]], way: tuple[Place, ...]) -> None:
        """Add the module files of a directory. `way`: it and its parents, to detect a link to a parent."""
        for entry in entries:
            if entry.name in self._excluded:
                continue
            path = f"{directory}/{entry.name}"
            try:
                if entry.is_file(follow_symlinks=False) and not is_module_file(entry.name):
                    continue
                status = entry.stat()
            except OSError as error:
                # kmod prints the directory's file descriptor; that of the outermost is the first free one
                self._complain(f"fstatat({2 + len(way)}, {entry.name}): {error.strerror}")
                continue
            if stat.S_ISDIR(status.st_mode):
                self._enter(path, status, way)
            else:
                self._file(path, entry.name, status)

    def _enter(self, path: str, status: os.stat_result, way: tuple[Place, ...]) -> None:
        here = (status.st_dev, status.st_ino)
        try:
            if here in way:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            with os.scandir(self._root + path) as entries:
                self._walk(path, entries, (*way, here))
        except OSError as error:
            name = path.rpartition("/")[2]
            self._complain(f"openat({2 + len(way)}, {name}, O_RDONLY): {error.strerror}")

    def _file(self, path: str, name: str, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            self._complain(f"unsupported file type {path}: {stat.S_IFMT(status.st_mode):o}")
            return
        if not is_module_file(name):
            return
        new = member(path, self._directory)
        rival = self._found.get(new.name)
        if rival is not None:
            if not depmod_d.wins(self._config, self._directory, new.name, path, rival.member.path):
                return
            del self._found[new.name]
        self._found[new.name] = Seen(new, stamp_of(status))

    def _complain(self, text: str) -> None:
        self.complaints.append(Complaint("ERROR", text))
