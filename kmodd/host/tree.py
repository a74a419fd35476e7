"""A module tree below a root directory: its indexes, configuration and /proc/modules.

`Tree` has the paths, `Tree.snapshot` reads the files. Paths are printed without `--root` (and with modprobe's
`-d DIR`); `real` maps a printed path to the one to open.
"""

from __future__ import annotations

import os
import stat

from kmodd.config import cmdline, modprobe_d
from kmodd.config.modprobe_d import DROP_IN, ConfFile, Config, Extensions
from kmodd.errors import NoTree, Problem, Where
from kmodd.host.paths import CONFIG_DIRS, SOFTDEP_FILES, TREES
from kmodd.host.regular_files import names_in, open_regular, read_file, read_given, why_unreadable
from kmodd.index.catalog import Catalog, Mark, Snapshot
from kmodd.index.layer import INDEXES, TEXT_OF, Layer, LayerIndexes
from kmodd.kernel import proc_modules
from kmodd.kernel.proc_modules import Loaded
from kmodd.names import MODULE_SUFFIXES
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kmodd.host.file_owner import Found

EXTENSIONS = "index.d"
"""Directory in the module directory; each of its subdirectories has the indexes of a system extension, which take
precedence over those of the tree.
"""

_OF_THE_KERNEL = ("modules.builtin", *TEXT_OF)
"""Text files installed with the kernel; depmod writes only their `.bin`."""
_STALE_NS = 60 * 10**9
"""depmod writes a `.bin` right after its text; if it is newer by this, the text is from an earlier run."""
CONFIG_LIMIT = 8 << 20
"""Bytes of all files of modprobe.d. To read 8 MiB takes several seconds and 250 MiB; Debian's have 20 KiB."""
_TRIES = 5
"""Attempts to read a consistent snapshot."""


class Tree:
    """The module tree of one kernel release, with its configuration."""

    def __init__(
        self,
        root: str = "",
        release: str | None = None,
        module_dir: str | None = None,
        config_paths: Sequence[str] | None = None,
        extensions: Extensions = DROP_IN,
    ) -> None:
        """Find the module directory, without reading its files.

        root: prefix of every path. release: of the kernel; by default the only one below root, else the running one.
        module_dir: modprobe's `-d`, prefix of /lib/modules only, and printed. config_paths: modprobe's `-C`, replaces
        the usual directories.
        """
        self.root = root.rstrip("/")
        self.extensions = extensions
        self.notice_edits = True
        """Whether a file edited in place makes a snapshot outdated; else only a changed directory, as in libkmod."""
        self.guessed = False
        """The release was not given, but is the only one below root; programs print that on standard error."""
        self._prefix = module_dir
        self._config_paths = None if config_paths is None else tuple(config_paths)
        only = self._only_release() if release is None and self.root else None
        self.release = release or only or os.uname().release
        self.guessed = only is not None
        self.directory = self._find_directory()
        """The module directory, as printed; while there is none, `check` looks for it again."""
        self._kept: tuple[tuple[tuple[str, Mark], ...], Catalog] | None = None
        """The indexes of the last `read`, and the marks of their files; None also if one could not be read."""

    def configure(self, extensions: Extensions, notice_edits: bool) -> None:
        """Set what the next `read` goes by; see the attributes."""
        self.extensions, self.notice_edits = extensions, notice_edits

    def real(self, path: str) -> str:
        """Return the path to open for a printed path."""
        return self.root + path if path.startswith("/") else path

    def present(self, path: str) -> bool:
        """Return whether the file at a printed path exists, symbolic links followed."""
        try:
            os.stat(self.real(path))
        except (OSError, ValueError):
            return False
        return True

    @property
    def trees(self) -> tuple[str, ...]:
        """The directories, with root, below which module files lie."""
        return tuple(map(self.real, TREES)) if self._prefix is None else (os.path.dirname(self.directory),)

    def find(self, path: str) -> Found | None:
        """Return what is known of the module file at a printed path without opening it; None: it is missing."""
        from kmodd.host.file_owner import find  # only here: a modprobe that prints does without

        try:
            return find(self.real(path), self.trees)
        except (OSError, ValueError):
            return None

    def foreign(self, path: str) -> str:
        """Return why the module file at a printed path is not root's alone; empty: it is, or is missing."""
        found = self.find(path)
        return found.why if found else ""

    def loaded(self) -> Loaded:
        """Return the modules that are loaded now; none if /proc/modules is missing below root."""
        data = read_file(self.real("/proc/modules"))
        return proc_modules.NOTHING_LOADED if data is None else proc_modules.parse_modules(decode(data))

    def check(self) -> None:
        """Raise NoTree if the module directory is missing, or its modules.dep and modules.dep.bin are, or are damaged.

        An empty modules.dep is damaged only if the tree has modules.
        """
        if not self._has_directory():
            self.directory = self._find_directory()
        directory = self.real(self.directory)
        if not os.path.isdir(directory):
            self._kept = None  # the marks may be the same when it is back, and an index may have been read meanwhile
            kernel = f"the running kernel {self.release}" if self._is_running() else f"kernel {self.release}"
            raise NoTree(f"no module tree for {kernel}: {directory} does not exist")
        if not any(os.path.exists(f"{directory}/{name}") for name in ("modules.dep", "modules.dep.bin")):
            raise NoTree(f"no module index for kernel {self.release}: no {directory}/modules.dep; run depmod")
        if _begins_with_text(f"{directory}/modules.dep"):
            return
        indexes = LayerIndexes(self._layer(self.directory), like_kmod=False)
        if not indexes.names() and indexes.is_damaged:
            raise NoTree(f"no module index for kernel {self.release}: {directory}/{indexes.problems[0]}")

    def snapshot(self) -> Snapshot:
        """Return `read`, after `check`. Raises NoTree."""
        self.check()
        return self.read()

    def read(self, *, whole: bool = True) -> Snapshot:
        """Return indexes and configuration of one moment; if a file is replaced meanwhile, they are read again.

        Indexes of which each file is that of the last call are kept: the kernel's requests would wait for them.
        whole: False leaves each index to its first query, or to `Catalog.load`; that of symbols is left in any case.
        Raises nothing: if the tree is removed meanwhile, the snapshot is incomplete and not current.
        """
        tries = _TRIES
        while True:
            indexes = self._index_marks()
            before = (*indexes, *self._config_marks())
            if self._kept is None or self._kept[0] != indexes:
                self._kept = None  # first, so that the next ones can use their memory
                self._kept = indexes, self._catalog()
            catalog = self._kept[1]
            snapshot = Snapshot(catalog, self.config(), marks=before)
            if whole:
                catalog.load()
            after = self._marks()
            if after[: len(indexes)] != indexes:
                self._kept = None
            tries -= 1
            if not tries or after == before:
                return snapshot
            del snapshot, catalog  # likewise

    def quick_snapshot(self, like_kmod: bool = False) -> Snapshot:
        """Return a snapshot for a single look-up, which reads each index when it is needed. Raises nothing.

        like_kmod: read the `.bin` files if they exist.
        """
        return Snapshot(self._catalog(like_kmod), self.config())

    def is_current(self, snapshot: Snapshot) -> bool:
        """Return whether no file that `snapshot` was read from has changed since, by stat(2) of each."""
        return bool(snapshot.marks) and snapshot.marks == self._marks()

    def config(self, read: Callable[[str], bytes | None] | None = None) -> Config:
        """Read modprobe.d and the kernel command line.

        read: returns the content of the configuration file at a path to open; None: `read_file`.
        """
        places = [f"{layer}/{name}" for layer in self._layer_dirs() for name in SOFTDEP_FILES]
        files: list[ConfFile] = []
        size = 0
        complaints: list[str] = []
        problems = []
        for path in modprobe_d.ordered([*places, *self._config_places(complaints)]):
            data = read(self.real(path)) if read else self._read_config(path)
            why = why_unreadable(self.real(path)) if data is None else ""
            if data and size + len(data) > CONFIG_LIMIT:
                why = f"the files of modprobe.d have more than {CONFIG_LIMIT >> 20} MiB in all"
            elif data:
                size += len(data)
                files.append(ConfFile(path, decode(data)))
            if why:
                complaints.append(f"libkmod: ERROR kmodd: ignoring {path}: {why}")
                expected = "expected less" if data else "expected a configuration file"
                problems.append(Problem(Where(path, 0), 0, "", f"{why}, {expected}"))
        own = Config(complaints=tuple(complaints), problems=tuple(problems))
        parts = [own, *(modprobe_d.parse_file(file) for file in files)]
        line = read_file(self.real(cmdline.PATH))
        if line is not None:
            parts.append(cmdline.parse(decode(line)).config(self.extensions))
        return modprobe_d.merge(parts, self.extensions)

    def _read_config(self, path: str) -> bytes | None:
        """Return the content of a file of configuration, or None; only one of `-C` may be a pipe."""
        if self._config_paths is None or path not in self._config_paths:
            return read_file(self.real(path))
        try:
            return read_given(self.real(path))
        except OSError:
            return None

    def _catalog(self, like_kmod: bool = False) -> Catalog:
        return Catalog([self._layer(directory) for directory in self._layer_dirs()], like_kmod)

    # ── paths ──

    def directories(self) -> list[str]:
        """Return the directories, with root, in which a change may make a snapshot outdated; some may not exist."""
        layers = [*self._layer_dirs(), f"{self.directory}/{EXTENSIONS}"]
        if not self._has_directory():
            layers += self._module_dirs()
        paths = CONFIG_DIRS if self._config_paths is None else self._config_paths
        return [self.real(path) for path in (*layers, *paths)]

    def _is_running(self) -> bool:
        return not self.root and self.release == os.uname().release

    def _only_release(self) -> str | None:
        """Return the only release below root; None if there are several or none."""
        for tree in TREES:
            try:
                names = [entry.name for entry in os.scandir(self.real(tree)) if entry.is_dir()]
            except OSError:
                continue
            if len(names) == 1:
                return names[0]
        return None

    def _has_directory(self) -> bool:
        return os.path.isdir(self.real(self.directory))

    def _module_dirs(self) -> list[str]:
        """Return where the module directory may be: in /lib/modules, then in /usr/lib/modules."""
        prefix = self._prefix or ""
        if prefix and not prefix.startswith("/"):
            prefix = f"{os.getcwd()}/{prefix}"
        return [f"{prefix}{tree}/{self.release}" for tree in TREES]

    def _find_directory(self) -> str:
        """Return the first module directory that exists, else the first."""
        usual, other = self._module_dirs()
        if not os.path.isdir(self.real(usual)) and os.path.isdir(self.real(other)):
            return other
        return usual

    def _layer_dirs(self) -> list[str]:
        """Return the directories with indexes by precedence: those of extensions by name, then the tree's own."""
        extensions = f"{self.directory}/{EXTENSIONS}"
        return [f"{extensions}/{name}" for name in names_in(self.real(extensions))] + [self.directory]

    def _layer(self, directory: str) -> Layer:
        real = self.real(directory)

        def read(name: str) -> bytes | None:
            data = read_file(f"{real}/{name}")
            if data is None and mark_of(f"{real}/{name}"):
                self._kept = None  # it may be readable at the next reload
            return data

        def is_stale(name: str) -> bool:
            if name in _OF_THE_KERNEL:
                return False
            text, twin = mark_of(f"{real}/{name}"), mark_of(f"{real}/{name}.bin")
            return text is not None and twin is not None and text[3] + _STALE_NS < twin[3]

        label = directory.removeprefix(self.directory + "/") + "/" if directory != self.directory else ""
        return Layer(self.directory, read, is_stale, lambda: _has_modules(real), label)

    def _config_places(self, complaints: list[str]) -> list[tuple[str, list[str]] | str]:
        """Return directories with their file names, and single files given by `-C`; highest priority first."""
        paths = list(CONFIG_DIRS if self._config_paths is None else self._config_paths)
        if self._config_paths is None and self._is_same(*CONFIG_DIRS[-2:]):
            del paths[-2]  # merged /usr; Debian 12's kmod prints /lib/modprobe.d
        places: list[tuple[str, list[str]] | str] = []
        for path in paths:
            try:
                status = os.stat(self.real(path))
            except (OSError, ValueError):
                continue
            is_dir = stat.S_ISDIR(status.st_mode)
            places.append((path, self._config_names(path, complaints)) if is_dir else path)
        return places

    def _is_same(self, one: str, other: str) -> bool:
        mark = mark_of(self.real(one))
        return mark is not None and mark == mark_of(self.real(other))

    def _config_names(self, path: str, complaints: list[str]) -> list[str]:
        names = []
        for name in names_in(self.real(path)):
            if name.startswith(".") or not name.endswith(modprobe_d.SUFFIXES):
                continue
            try:
                is_dir = os.path.isdir(f"{self.real(path)}/{name}")
            except ValueError:
                continue
            if is_dir:
                complaints.append(
                    "libkmod: ERROR: conf_files_filter_out: "
                    f"Directories inside directories are not supported: {path}/{name}"
                )
                continue
            names.append(name)
        return names

    # ── changes ──

    def _marks(self) -> tuple[tuple[str, Mark], ...]:
        """Return path and mark of each file that a snapshot reads, or would read if it existed."""
        return (*self._index_marks(), *self._config_marks())

    def _index_marks(self) -> tuple[tuple[str, Mark], ...]:
        paths: list[str] = []
        for layer in [f"{self.directory}/{EXTENSIONS}", *self._layer_dirs()]:
            paths += [layer, *(f"{layer}/{name}" for name in SOFTDEP_FILES)]
            for index in INDEXES:
                paths += [f"{layer}/{TEXT_OF.get(index, index)}", f"{layer}/{index}.bin"]
        return self._marks_of(paths)

    def _config_marks(self) -> tuple[tuple[str, Mark], ...]:
        paths: list[str] = []
        for place in self._config_places([]):
            if isinstance(place, str):
                paths.append(place)
            else:
                paths += [place[0], *(f"{place[0]}/{name}" for name in place[1] if self.notice_edits)]
        return self._marks_of(paths)

    def _marks_of(self, paths: Sequence[str]) -> tuple[tuple[str, Mark], ...]:
        return tuple((path, mark_of(self.real(path))) for path in paths)


def _begins_with_text(path: str) -> bool:
    """Return whether a file has content other than NUL bytes, which a power cut may leave."""
    try:
        fd = open_regular(path)
    except (OSError, ValueError):
        return False
    try:
        return os.read(fd, 1) not in (b"", b"\0")
    finally:
        os.close(fd)


def _has_modules(directory: str) -> bool:
    """Return whether there is a module file below a directory."""
    return any(name.endswith(MODULE_SUFFIXES) for _, _, names in os.walk(directory) for name in names)


def mark_of(path: str) -> Mark:
    """Return the current mark of a file; None if it is missing."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
