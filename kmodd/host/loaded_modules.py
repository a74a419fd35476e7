"""Read what /sys/module, /proc/modules, the module tree and the kernel's trace have of loaded modules."""

from __future__ import annotations

import os

from kmodd.host.build_id import NOTE
from kmodd.host.file_birth import birth_of
from kmodd.host.load_tracer import LOADS
from kmodd.host.module_reader import read_module
from kmodd.host.proc_modules import read_loaded
from kmodd.host.regular_files import names_in, read_file, read_regular
from kmodd.kernel import load_trace
from kmodd.kernel.module_notes import build_id_of_notes
from kmodd.modfile.elf import ElfError
from kmodd.modfile.modinfo import info
from kmodd.planning.verify import File, Live, NoFile, Unreadable
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from kmodd.host.tree import Tree
    from kmodd.index.catalog import Catalog
    from kmodd.kernel.load_trace import ModuleLoad
    from kmodd.planning.verify import OnDisk

_SYS = "/sys/module"
_SHIPPED = "kernel/"
"""Folder of the tree for the kernel's own modules, whose files have the names of their modules."""


def read_live(root: str = "") -> list[Live | Unreadable]:
    """Return the modules in /proc/modules, and those in /sys/module that it does not list, in the order of names.

    Raises OSError if /proc/modules cannot be read.
    """
    there = [name for name in names_in(root + _SYS) if os.path.exists(f"{root}{_SYS}/{name}/initstate")]
    states = {str(name): module.state for name, module in read_loaded(root).modules.items()}
    found = []
    for name in sorted({*there, *states}):
        if states.get(name) == "going":
            continue
        module = _read_live(name, root, is_listed=name in states)
        if (isinstance(module, Live) and module.is_listed) or _is_still(name, root, is_listed=name in states):
            found.append(module)
    return found


def _is_still(name: str, root: str, *, is_listed: bool) -> bool:
    """Return whether /proc/modules still has a module, or still lacks it; it may come or go at this moment."""
    state = read_loaded(root).state(name)
    if is_listed:
        return state in ("live", "coming")
    return state is None and os.path.exists(f"{root}{_SYS}/{name}/initstate")


def _read_live(name: str, root: str, *, is_listed: bool) -> Live | Unreadable:
    folder = f"{_SYS}/{name}"
    if not os.path.isdir(root + folder):
        return Unreadable(name, folder, "No such file or directory")
    texts = []
    for part in (NOTE, "srcversion", "taint"):
        try:
            texts.append(read_regular(f"{root}{folder}/{part}"))
        except FileNotFoundError:  # the module has none
            texts.append(b"")
        except OSError as error:
            return Unreadable(name, f"{folder}/{part}", error.strerror or "unknown")
    notes, srcversion, taint = texts
    return Live(name, build_id_of_notes(notes), _line(srcversion), _line(taint), is_listed)


def _line(data: bytes) -> str:
    return decode(data).strip()


class Files:
    """The files of loaded modules in a tree."""

    def __init__(self, tree: Tree, catalog: Catalog) -> None:
        """tree, catalog: of the kernel that runs."""
        self._tree, self._catalog = tree, catalog
        self._renamed: dict[str, str] | None = None

    def read(self, name: str) -> OnDisk:
        """Return the file of a module: the one of its name, else one whose content has this name."""
        line = self._catalog.dep(name)
        path = line.path if line else self._by_content(name)
        return self._read(name, path) if path else NoFile()

    def is_same(self, path: str, file: File) -> bool:
        """Return whether a recorded path is that of a file, links followed; a relative one is of an unknown place."""
        real = self._tree.real
        return path.startswith("/") and os.path.realpath(real(path)) == os.path.realpath(real(file.path))

    def _by_content(self, name: str) -> str:
        """Return the path of a file with another name, as nvidia-current.ko of nvidia; empty: there is none."""
        if self._renamed is None:
            self._renamed = dict(self._names())
        return self._renamed.get(name, "")

    def _names(self) -> Iterator[tuple[str, str]]:
        for known in self._catalog.names():
            line = self._catalog.dep(known)
            if line is None or line.path.removeprefix(f"{self._tree.directory}/").startswith(_SHIPPED):
                continue
            disk = self._tree.find(line.path)
            if disk is None or disk.status is None:
                continue
            try:
                fields = dict(info(read_module(disk.path)).fields)
            except (OSError, ElfError):
                continue
            if name := decode(fields.get(b"name", b"")):
                yield name, line.path

    def _read(self, name: str, path: str) -> OnDisk:
        found = self._tree.find(path)
        if found is None:
            try:
                os.stat(self._tree.real(path))
            except FileNotFoundError:
                return NoFile(path)
            except OSError as error:
                return Unreadable(name, path, error.strerror or "unknown")
            return Unreadable(name, path, "it cannot be examined")
        if found.status is None:  # a file system that may not answer, or no regular file: it is not opened
            return File(path, 0, foreign=found.why, is_read=False)
        place = os.path.realpath(found.path)
        is_below = any(place.startswith(f"{os.path.realpath(tree)}/") for tree in self._tree.trees)
        target = "" if is_below else place.removeprefix(os.path.realpath(self._tree.root or "/").rstrip("/"))
        try:
            facts = info(read_module(found.path), with_build_id=True)
        except OSError as error:
            return Unreadable(name, path, error.strerror or "unknown")
        except ElfError as error:
            return Unreadable(name, path, f"{error}: no module, or a damaged one")
        fields = dict(facts.fields)
        signer = decode(facts.signature.signer) if facts.signature else ""
        return File(
            path, found.status.st_ctime_ns // 1000, birth_of(found.path), facts.build_id,
            decode(fields.get(b"srcversion", b"")), signer, b"intree" in fields, found.why, target,
        )  # fmt: skip


def read_loads(root: str = "") -> dict[str, ModuleLoad]:
    """Return the last load of each module in the trace that the daemon keeps; none without it, or for a user."""
    data = next((data for place in LOADS if (data := read_file(root + place)) is not None), b"")
    return load_trace.parse(decode(data))
