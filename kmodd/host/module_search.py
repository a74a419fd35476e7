"""Module files: looking for them below a directory. What is in them: `module_data`."""

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
    """A module file, and how it looked from outside."""

    member: Member
    stamp: Stamp


def stamp_of(status: os.stat_result) -> Stamp:
    """What tells one state of a file from another."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


# ── looking for them ─────────────────────────────────────────────────────────────────────────────────────────────────


class Search:
    """All modules below a module directory, one for each name, as depmod.d prefers them (depmod_modules_search)."""

    def __init__(self, directory: str, config: DepmodConfig, root: str = "") -> None:
        """`directory` as it is printed; `root` is put before each path that is opened."""
        self._directory = directory
        self._config = config
        self._root = root
        self._excluded = frozenset((*depmod_d.ALWAYS_EXCLUDED, *config.excludes))
        self._found: dict[str, Seen] = {}
        self.complaints: list[Complaint] = []

    def run(self) -> list[Seen]:
        """Look for them, in the order in which the filesystem names them. Raises OSError for the directory itself."""
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
        """`way`: this directory and those above it, by which a link back up is known."""
        for entry in entries:
            if entry.name in self._excluded:
                continue
            path = f"{directory}/{entry.name}"
            try:
                if entry.is_file(follow_symlinks=False) and not is_module_file(entry.name):
                    continue
                status = entry.stat()
            except OSError as error:
                # kmod names the descriptor of the directory; the outermost has the first that is free
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
