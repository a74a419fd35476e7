"""One root for every path, and what is read below it: indexes, configuration, /proc/modules.

A `Tree` knows where things are; `snapshot` reads them. Paths are *printed* without `--root` (and with modprobe's
`-d DIR`); `real` maps a printed path to the one to open.
"""

from __future__ import annotations

import os
import stat

from kmodd.config import cmdline, modprobe_d
from kmodd.config.modprobe_d import DROP_IN, ConfFile, Config, Extensions
from kmodd.dataclass import dataclass
from kmodd.errors import NoTree
from kmodd.host.paths import CONFIG_DIRS, SOFTDEP_FILES, TREES
from kmodd.index.catalog import Catalog, Snapshot
from kmodd.index.layer import INDEXES, TEXT_OF, Layer
from kmodd.kernel import proc_modules
from kmodd.kernel.proc_modules import Loaded
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

EXTENSIONS = "index.d"
"""Below the module directory: each folder in it holds the index of a system extension, laid over the tree's own."""

_OF_THE_KERNEL = ("modules.builtin", *TEXT_OF)
"""Their texts come with the kernel; depmod makes only the `.bin`, whenever it runs."""
_STALE_NS = 60 * 10**9
"""depmod writes a `.bin` right after its text: this much later, and it is of another run."""
_TRIES = 5

Mark = tuple[int, int, int, int] | None
"""What tells that a file changed: device, inode, size, mtime; None: not there."""


@dataclass(frozen=True, slots=True)
class TreeSnapshot(Snapshot):
    """A snapshot, and how the files looked that it was read from."""

    marks: tuple[tuple[str, Mark], ...] = ()


class Tree:
    """The module tree of one kernel release, and its surroundings."""

    def __init__(
        self,
        root: str = "",
        release: str | None = None,
        module_dir: str | None = None,
        config_paths: Sequence[str] | None = None,
        extensions: Extensions = DROP_IN,
    ) -> None:
        """Nothing is read but, without a release and with a root, the names in its lib/modules.

        root: prefix of every path. release: of the kernel; the running one, or the only one below root.
        module_dir: modprobe's `-d`, the prefix of /lib/modules alone, printed. config_paths: modprobe's `-C`, in place
        of the usual directories.
        """
        self.root = root.rstrip("/")
        self.extensions = extensions
        self.notice_edits = True
        """A configuration file edited in place makes a snapshot old; else only a changed folder does, as in libkmod."""
        self.guessed = False
        """The release is the only one below root: programs say so on standard error."""
        self._prefix = module_dir
        self._config_paths = None if config_paths is None else tuple(config_paths)
        only = self._only_release() if release is None and self.root else None
        self.release = release or only or os.uname().release
        self.guessed = only is not None
        self.directory = self._find_directory()
        """The module directory, as printed."""

    def real(self, path: str) -> str:
        """Where to open what is printed as `path`."""
        return self.root + path if path.startswith("/") else path

    def present(self, path: str) -> bool:
        """Whether a file, named as printed, is there. Links count by what they lead to."""
        try:
            os.stat(self.real(path))
        except (OSError, ValueError):
            return False
        return True

    def loaded(self) -> Loaded:
        """What the kernel has now; nothing where root/proc/modules is absent."""
        data = read_file(self.real("/proc/modules"))
        return proc_modules.NOTHING_LOADED if data is None else proc_modules.parse_modules(decode(data))

    def check(self) -> None:
        """Raises NoTree where there is no module directory, or none of its two indexes of names."""
        directory = self.real(self.directory)
        if not os.path.isdir(directory):
            kernel = f"the running kernel {self.release}" if self._is_running() else f"kernel {self.release}"
            raise NoTree(f"no module tree for {kernel}: {directory} does not exist")
        if not any(os.path.exists(f"{directory}/{name}") for name in ("modules.dep", "modules.dep.bin")):
            raise NoTree(f"no module index for kernel {self.release}: no {directory}/modules.dep; run depmod")

    def snapshot(self) -> TreeSnapshot:
        """`read`, if there is anything. Raises NoTree."""
        self.check()
        return self.read()

    def read(self) -> TreeSnapshot:
        """Indexes and configuration, all of one moment: where a file was replaced midway, all is read again. Only
        modules.symbols is read when somebody asks for a symbol.

        Raises nothing: of a tree that goes meanwhile there is less in it, and it is not current.
        """
        tries = _TRIES
        while True:
            before = self._marks()
            snapshot = self._read(before)
            snapshot.catalog.load()
            tries -= 1
            if not tries or self._marks() == before:
                return snapshot
            del snapshot  # the next one is made in its memory

    def quick_snapshot(self, like_kmod: bool = False) -> TreeSnapshot:
        """The same for a program that asks one question: each index is read when, and if, it is needed. Raises nothing.

        `like_kmod`: out of the `.bin` files where there are any.
        """
        return self._read((), like_kmod)

    def is_current(self, snapshot: Snapshot) -> bool:
        """Whether nothing that `snapshot` was read from has changed since: a stat of each file and directory."""
        return isinstance(snapshot, TreeSnapshot) and snapshot.marks == self._marks()

    def config(self) -> Config:
        """modprobe.d and the kernel command line, read now."""
        places = [f"{layer}/{name}" for layer in self._layer_dirs() for name in SOFTDEP_FILES]
        files = []
        complaints: list[str] = []
        for path in modprobe_d.ordered([*places, *self._config_places(complaints)]):
            data = read_file(self.real(path))
            if data:
                files.append(ConfFile(path, decode(data)))
        parts = [Config(complaints=tuple(complaints)), *(modprobe_d.parse_file(file) for file in files)]
        line = read_file(self.real(cmdline.PATH))
        if line is not None:
            parts.append(cmdline.parse(decode(line)).config(self.extensions))
        return modprobe_d.merge(parts, self.extensions)

    def _read(self, marks: tuple[tuple[str, Mark], ...], like_kmod: bool = False) -> TreeSnapshot:
        layers = [self._layer(directory) for directory in self._layer_dirs()]
        return TreeSnapshot(Catalog(layers, like_kmod), self.config(), marks=marks)

    # ── where things are ──

    def directories(self) -> list[str]:
        """Every directory, as to be opened, in which a change may make a snapshot old, there or not."""
        layers = [*self._layer_dirs(), f"{self.directory}/{EXTENSIONS}"]
        paths = CONFIG_DIRS if self._config_paths is None else self._config_paths
        return [self.real(path) for path in (*layers, *paths)]

    def _is_running(self) -> bool:
        return not self.root and self.release == os.uname().release

    def _only_release(self) -> str | None:
        """The one release below root, or None where there are several or none."""
        for tree in TREES:
            try:
                names = [entry.name for entry in os.scandir(self.real(tree)) if entry.is_dir()]
            except OSError:
                continue
            if len(names) == 1:
                return names[0]
        return None

    def _find_directory(self) -> str:
        if self._prefix is not None:
            path = f"{self._prefix}/lib/modules/{self.release}"
            return path if path.startswith("/") else f"{os.getcwd()}/{path}"
        usual, other = (f"{tree}/{self.release}" for tree in TREES)
        if not os.path.isdir(self.real(usual)) and os.path.isdir(self.real(other)):
            return other
        return usual

    def _layer_dirs(self) -> list[str]:
        """The directories with indexes, uppermost first: those of extensions by name, then the tree's own."""
        extensions = f"{self.directory}/{EXTENSIONS}"
        return [f"{extensions}/{name}" for name in _names(self.real(extensions))] + [self.directory]

    def _layer(self, directory: str) -> Layer:
        real = self.real(directory)

        def read(name: str) -> bytes | None:
            return read_file(f"{real}/{name}")

        def is_stale(name: str) -> bool:
            if name in _OF_THE_KERNEL:
                return False
            text, twin = mark_of(f"{real}/{name}"), mark_of(f"{real}/{name}.bin")
            return text is not None and twin is not None and text[3] + _STALE_NS < twin[3]

        label = directory.removeprefix(self.directory + "/") + "/" if directory != self.directory else ""
        return Layer(self.directory, read, is_stale, label)

    def _config_places(self, complaints: list[str]) -> list[tuple[str, list[str]] | str]:
        """The directories with the names in them, and the single files that `-C` gives, highest priority first."""
        paths = list(CONFIG_DIRS if self._config_paths is None else self._config_paths)
        if self._config_paths is None and self._is_same(*CONFIG_DIRS[-2:]):
            del paths[-2]  # a merged /usr; Debian 12's kmod calls it /lib/modprobe.d
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
        for name in _names(self.real(path)):
            if name.startswith(".") or not name.endswith(modprobe_d.SUFFIXES):
                continue
            try:
                is_dir = os.path.isdir(f"{self.real(path)}/{name}")
            except ValueError:
                continue
            if is_dir:
                complaints.append(
                    "libkmod: ERROR ../libkmod/libkmod-config.c:772 conf_files_filter_out: "
                    f"Directories inside directories are not supported: {path}/{name}"
                )
                continue
            names.append(name)
        return names

    # ── what changed ──

    def _marks(self) -> tuple[tuple[str, Mark], ...]:
        """The marks of everything that a snapshot reads, or would read if it were there."""
        paths = []
        for layer in [f"{self.directory}/{EXTENSIONS}", *self._layer_dirs()]:
            paths += [layer, *(f"{layer}/{name}" for name in SOFTDEP_FILES)]
            for index in INDEXES:
                paths += [f"{layer}/{TEXT_OF.get(index, index)}", f"{layer}/{index}.bin"]
        for place in self._config_places([]):
            if isinstance(place, str):
                paths.append(place)
            else:
                paths += [place[0], *(f"{place[0]}/{name}" for name in place[1] if self.notice_edits)]
        return tuple((path, mark_of(self.real(path))) for path in paths)


def read_file(path: str) -> bytes | None:
    """The bytes of a file, or None where it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except (OSError, ValueError):
        return None


def _names(directory: str) -> list[str]:
    """The names in a directory, in byte order; none where it cannot be read."""
    try:
        return sorted(os.listdir(directory), key=os.fsencode)
    except (OSError, ValueError):
        return []


def mark_of(path: str) -> Mark:
    """How a file looks now: not an error where it is not there."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
