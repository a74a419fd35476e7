"""Query the index files of one module directory, which are read at the first query and kept.

Each index has two forms, a text and a `.bin` (the text of modules.builtin.alias.bin is modules.builtin.modinfo).
`LayerIndexes` documents which one is read. A damaged form is a Problem, and the other one is read instead: after a
power cut, a file may be empty or end in the middle of a line.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass
from kmodd.errors import ParseError, Problem, UnmatchedBracket, Where
from kmodd.index import text_files
from kmodd.index.bin_reader import BinIndex
from kmodd.index.text_files import DepLine, Match
from kmodd.names import ModuleName, module_of_path, underscores
from kmodd.text import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from kmodd.index.alias_trie import AliasTrie

    T = TypeVar("T")

TEXT_OF = {"modules.builtin.alias": "modules.builtin.modinfo"}
"""Index → the name of its text, if it differs."""
INDEXES = ("modules.dep", "modules.alias", "modules.symbols", "modules.builtin", "modules.builtin.alias")
"""Names of the indexes with two forms; the second has the suffix `.bin`."""

_OF_DEPMOD = ("modules.dep", "modules.alias", "modules.symbols")
"""The indexes that depmod writes in both forms; one of no bytes is damaged, unless there are no modules."""
_OF_THE_KERNEL = ("modules.builtin", *TEXT_OF.values())
"""The texts that are installed with the kernel."""
_NUL = b"\0"


def _never(_: str) -> bool:
    return False


def _no() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Layer:
    """Source of the indexes of one module directory."""

    directory: str
    """The module directory, for output; paths in modules.dep are relative to it."""
    read: Callable[[str], bytes | None]
    """Returns the content of an index file by its base name, or None without such a file."""
    is_stale: Callable[[str], bool] = _never
    """Returns whether the text of an index, named as in INDEXES, is older than its `.bin`."""
    has_modules: Callable[[], bool] = _no
    """Returns whether the directory has module files, for an empty modules.dep."""
    label: str = ""
    """Prefix of the names of index files in messages; empty for the base of the tree."""


Matches = tuple[Match, ...]


class LayerIndexes:
    """The indexes of one layer. Results never change."""

    def __init__(self, layer: Layer, like_kmod: bool) -> None:
        """Take a layer. Nothing is read yet.

        like_kmod: read the `.bin` if there is one; otherwise only if the text is absent or stale.
        """
        self._layer = layer
        self._like_kmod = like_kmod
        self._opened: dict[str, bytes | BinIndex] = {}
        self._deps: dict[ModuleName, str] | None = None
        self._builtins: frozenset[str] | None = None
        self._tries: dict[str, AliasTrie] = {}
        self.problems: list[Problem] = []
        self.is_damaged = False
        """Whether an index read so far has entries in neither form but should have some."""

    def load(self) -> None:
        """Read the indexes that every plan needs. Symbols are rarely used, and half as big as the rest."""
        self.dep("")
        self.is_builtin("")
        self.aliases("")
        self.builtin_aliases("")

    def dep(self, name: str) -> DepLine | None:
        """Return file and dependencies of a module, with paths for output, or None if modules.dep does not have it.

        The path is empty if its value in modules.dep.bin is invalid.
        """
        line = self._query(
            "modules.dep", lambda index: index.get(name), lambda text: self._dep_lines(text).get(ModuleName(name))
        )
        if line is None:
            return None
        found = text_files.dep_line(line)
        if found is None:
            return DepLine("", ())
        return DepLine(self._absolute(found.path), tuple(map(self._absolute, found.deps)))

    def names(self) -> tuple[ModuleName, ...]:
        """Return every module of modules.dep."""
        return self._query(
            "modules.dep",
            lambda index: tuple(ModuleName(key) for key, _ in index.entries()),
            lambda text: tuple(self._dep_lines(text)),
        )

    def is_builtin(self, name: str) -> bool:
        """Return whether modules.builtin has the module."""
        return self._query(
            "modules.builtin", lambda index: index.get(name) is not None, lambda text: name in self._builtin_names(text)
        )

    def aliases(self, name: str) -> Matches:
        """Return the entries of modules.alias whose patterns match, by priority of the modules."""
        return self._match("modules.alias", name)

    def builtin_aliases(self, name: str) -> Matches:
        """Return the aliases of built-in modules that match, in the order of modules.builtin.alias.bin."""
        return self._match("modules.builtin.alias", name)

    def symbols(self, name: str) -> Matches:
        """Return the modules that export the symbol of `symbol:NAME`."""
        return self._query(
            "modules.symbols",
            lambda index: self._bin_matches(index, "modules.symbols", name),
            lambda text: self._symbol_matches(text, name),
        )

    def dump(self, name: str) -> tuple[tuple[str, str], ...]:
        """Return key and module of each entry of an alias index, with normalized keys, sorted by the bytes of the key.

        Entries with the same key are sorted by module.
        """
        if name in self._tries:  # its text was released
            return self._text_entries(self._text(name) or b"")
        return self._query(
            name,
            lambda index: tuple((key, value.text) for key, values in index.entries() for value in values),
            self._text_entries,
        )

    # ── queries to the two forms ──

    def _match(self, name: str, text: str) -> Matches:
        trie = self._tries.get(name)
        if trie is not None:
            return trie.matches(text)
        return self._query(
            name,
            lambda index: self._bin_matches(index, name, text),
            lambda data: self._trie(name, data).matches(text),
        )

    def _bin_matches(self, index: BinIndex, name: str, text: str) -> Matches:
        at = Where(self._file(name + ".bin"), 0)
        return tuple(Match(ModuleName(hit.value.text), hit.pattern, at) for hit in index.wildcard(text))

    def _symbol_matches(self, data: bytes, name: str) -> Matches:
        """Return the match of the line for a symbol; symbols have no wildcards."""
        start = data.find(b"\nalias " + encode(name) + b" ") + 1
        if not start:
            return ()
        line = decode(data[start:].partition(b"\n")[0])
        at = Where(self._file("modules.symbols"), data.count(b"\n", 0, start) + 1)
        return (Match(ModuleName(line.rpartition(" ")[2]), name, at),)

    def _text_entries(self, data: bytes) -> tuple[tuple[str, str], ...]:
        pairs = []
        for entry in text_files.alias_lines(data, "")[0]:
            try:
                pairs.append((underscores(entry.pattern), str(entry.module)))
            except UnmatchedBracket:  # depmod omits the entry from the .bin
                continue
        return tuple(sorted(pairs, key=lambda pair: encode(pair[0])))

    # ── texts, parsed once and then released ──

    def _trie(self, name: str, data: bytes) -> AliasTrie:
        from kmodd.index.alias_trie import AliasTrie  # imported here: a tool that reads the .bin does not need it

        file = self._file(TEXT_OF.get(name, name))
        if name in TEXT_OF:
            entries, problems = text_files.builtin_modinfo(data, file, only="alias")
            aliases = [(entry.value, entry.module) for entry in entries]
            trie = AliasTrie.from_entries(aliases, file, builtin_order=True)
        else:
            trie = AliasTrie.from_text(decode(data), file)
            problems = trie.problems
        self.problems += problems
        self._tries[name] = trie
        self._opened[name] = b""
        return trie

    def _builtin_names(self, data: bytes) -> frozenset[str]:
        if self._builtins is None:
            paths, problems = text_files.module_paths(data, self._file("modules.builtin"))
            self._builtins = frozenset(module_of_path(path) for path in paths)
            self.problems += problems
            self._opened["modules.builtin"] = b""
        return self._builtins

    def _dep_lines(self, data: bytes) -> dict[ModuleName, str]:
        if self._deps is None:
            self._deps, problems = text_files.dep_lines(data, self._file("modules.dep"))
            self.problems += problems
            self._opened["modules.dep"] = b""
        return self._deps

    # ── selection of the form ──

    def _open(self, name: str) -> bytes | BinIndex:
        """Open the index in the form to read, once; if it is damaged, in the other one."""
        if name not in self._opened:
            self._opened[name] = b""  # `_should_have_entries` queries other indexes, which may query this one
            text, twin = TEXT_OF.get(name, name), name + ".bin"
            if self._like_kmod or self._layer.is_stale(name):
                found = self._bin(name) or self._or_else(twin, text, self._whole_text(name))
            else:
                found = self._whole_text(name)
                found = self._or_else(text, twin, self._bin(name)) if found is None else found
            self._opened[name] = self._rest(name) if found is None else found
        return self._opened[name]

    def _text(self, name: str) -> bytes | None:
        return self._layer.read(TEXT_OF.get(name, name))

    def _whole_text(self, name: str) -> bytes | None:
        """Return the text of an index, or None without one and if it is damaged."""
        data = self._text(name)
        if data is None or (not data and name in _OF_DEPMOD):
            return None
        end = _end(name)
        if data and not data.endswith(end):
            what = f"ends in the middle of a {'string' if end == _NUL else 'line'}"
            self._add_problem(TEXT_OF.get(name, name), what, data.count(end) + 1)
            return None
        if end != _NUL and _NUL in data:
            self._add_problem(name, "contains NUL bytes")
            return None
        return data

    def _bin(self, name: str) -> BinIndex | None:
        """Return the `.bin` of an index, or None without one and if it is damaged."""
        data = self._layer.read(name + ".bin")
        if not data:  # depmod without modules.builtin leaves an empty modules.builtin.bin
            return None
        try:
            return BinIndex(data, self._file(name + ".bin"))
        except ParseError as error:
            self._add_error(error)
            return None

    def _or_else(self, file: str, other: str, found: bytes | BinIndex | None) -> bytes | BinIndex | None:
        """Return what was `found` in the file `other`; report it if depmod's `file` is empty and should not be."""
        has_entries = found.has_entries() if isinstance(found, BinIndex) else bool(found)
        if has_entries and other.removesuffix(".bin") in _OF_DEPMOD and self._layer.read(file) == b"":
            self._add_problem(file, f"empty; {other} is read instead")
        return found

    def _rest(self, name: str) -> bytes:
        """Return what can be used of an index that is whole in neither form."""
        data, twin = self._text(name), self._file(name + ".bin")
        if not data:
            is_empty = data is not None or self._layer.read(name + ".bin") == b""
            if name in _OF_DEPMOD and is_empty and self._should_have_entries(name):
                self._add_problem(name if data is not None else name + ".bin", "empty")
                self.is_damaged = True
            self.is_damaged |= any(problem.at.file == twin for problem in self.problems)
            return b""
        self.is_damaged = True
        return data[: data.rfind(_end(name)) + 1]

    def _should_have_entries(self, name: str) -> bool:
        """Return whether an empty index is the result of a power cut, and not that of depmod without modules."""
        if name != "modules.dep":
            return bool(self.names())
        return any(self.dump(other) for other in ("modules.alias", "modules.symbols")) or self._layer.has_modules()

    def _query(self, name: str, query_bin: Callable[[BinIndex], T], query_text: Callable[[bytes], T]) -> T:
        """Query an index in the form to read. If its .bin is damaged, read the text from now on."""
        index = self._open(name)
        if isinstance(index, BinIndex):
            try:
                return query_bin(index)
            except ParseError as error:
                self._add_error(error)
                text = self._whole_text(name)
                index = self._opened[name] = self._rest(name) if text is None else text
        return query_text(index)

    def _add_error(self, error: ParseError) -> None:
        file, _, what = str(error).partition(": ")
        self._add_problem(file.removeprefix(self._layer.label), what)

    def _add_problem(self, file: str, what: str, line: int = 0) -> None:
        remedy = "reinstall the kernel" if file in _OF_THE_KERNEL else "run depmod"
        problem = Problem(Where(self._file(file), line), 0, "", f"{what}; {remedy}")
        if problem not in self.problems:
            self.problems.append(problem)

    def _file(self, name: str) -> str:
        return self._layer.label + name

    def _absolute(self, path: str) -> str:
        return path if path.startswith("/") else f"{self._layer.directory}/{path}"


def _end(name: str) -> bytes:
    """Return the end of each entry in the text of an index."""
    return _NUL if name in TEXT_OF else b"\n"
