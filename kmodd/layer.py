"""The index files of one module directory: read when they are first asked for, and kept.

Each index comes as a text and as its `.bin` twin (modules.builtin.alias.bin has modules.builtin.modinfo for a text).
Which one is read: see `LayerIndexes`. A damaged file is a Problem, and its twin is read instead where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kmodd import tables
from kmodd.binindex import BadIndex, BinIndex, Value, decode, encode
from kmodd.errors import Problem, UnmatchedBracket, Where
from kmodd.names import ModuleName, module_of_path, underscores
from kmodd.tables import DepLine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kmodd.alias_trie import AliasTrie

TEXT_OF = {"modules.builtin.alias": "modules.builtin.modinfo"}
"""Index → its text, where that has another name."""
INDEXES = ("modules.dep", "modules.alias", "modules.symbols", "modules.builtin", "modules.builtin.alias")
"""Base names of all indexes that have two forms; the second is this with `.bin`."""


def _never(_: str) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Layer:
    """Where the indexes of one module directory come from."""

    directory: str
    """The module directory as it is printed; paths in modules.dep are relative to it."""
    read: Callable[[str], bytes | None]
    """The bytes of an index file by its base name, or None where there is none."""
    is_stale: Callable[[str], bool] = _never
    """Whether the text of an index, named as in INDEXES, is older than its `.bin`."""
    label: str = ""
    """What stands before an index's base name where a person reads of it; empty for the base of the tree."""


@dataclass(frozen=True, slots=True)
class Match:
    """One entry of an alias index that fits a name."""

    module: ModuleName
    pattern: str
    """As the file spells it."""
    at: Where
    """Line 0 where the file is a `.bin`, which has none."""


Matches = tuple[Match, ...]


class LayerIndexes:
    """The indexes of one layer. Answers never change."""

    def __init__(self, layer: Layer, like_kmod: bool) -> None:
        """`like_kmod`: read the `.bin` where there is one; else only where the text is absent, stale or unusable."""
        self._layer = layer
        self._like_kmod = like_kmod
        self._opened: dict[str, bytes | BinIndex] = {}
        self._deps: dict[ModuleName, str] | None = None
        self._builtins: frozenset[str] | None = None
        self._tries: dict[str, AliasTrie] = {}
        self.problems: list[Problem] = []

    def load(self) -> None:
        """Read all that questions may need."""
        self.dep("")
        self.is_builtin("")
        self.aliases("")
        self.builtin_aliases("")
        self._open("modules.symbols")

    def dep(self, name: str) -> DepLine | None:
        """File and dependencies of a module, paths as printed; an empty path where its line says nothing."""
        index = self._open("modules.dep")
        line = self._get(index, name) if isinstance(index, BinIndex) else self._dep_lines(index).get(ModuleName(name))
        if line is None:
            return None
        found = tables.dep_line(line)
        if found is None:
            return DepLine("", ())
        return DepLine(self._absolute(found.path), tuple(map(self._absolute, found.deps)))

    def names(self) -> tuple[ModuleName, ...]:
        """Every module of modules.dep."""
        index = self._open("modules.dep")
        if isinstance(index, BinIndex):
            return tuple(ModuleName(key) for key, _ in self._entries(index))
        return tuple(self._dep_lines(index))

    def is_builtin(self, name: str) -> bool:
        """Whether modules.builtin has it."""
        index = self._open("modules.builtin")
        if isinstance(index, BinIndex):
            return self._get(index, name) is not None
        if self._builtins is None:
            paths, problems = tables.module_paths(index, self._file("modules.builtin"))
            self._builtins = frozenset(module_of_path(path) for path in paths)
            self.problems += problems
        return name in self._builtins

    def aliases(self, name: str) -> Matches:
        """The patterns of modules.alias that match, best module first."""
        return self._match("modules.alias", name)

    def builtin_aliases(self, name: str) -> Matches:
        """Those of the modules in the kernel's image, in the order of modules.builtin.alias.bin."""
        return self._match("modules.builtin.alias", name)

    def symbols(self, name: str) -> Matches:
        """Who exports `symbol:NAME`. There are no wildcards among symbols: the text is searched for the one line."""
        index = self._open("modules.symbols")
        if isinstance(index, BinIndex):
            return self._wildcard(index, "modules.symbols", name)
        start = index.find(b"\nalias " + encode(name) + b" ") + 1
        if not start:
            return ()
        line = decode(index[start:].partition(b"\n")[0])
        at = Where(self._file("modules.symbols"), index.count(b"\n", 0, start) + 1)
        return (Match(ModuleName(line.rpartition(" ")[2]), name, at),)

    def dump(self, name: str) -> Iterator[tuple[str, str]]:
        """Key and module of each entry of an alias index; keys normalised and in byte order, then modules in theirs."""
        index = self._open(name) if name not in self._tries else self._layer.read(name) or b""
        if isinstance(index, BinIndex):
            for key, values in self._entries(index):
                for value in values:
                    yield key, value.text
            return
        pairs = []
        for entry in tables.alias_lines(index, "")[0]:
            try:
                pairs.append((underscores(entry.pattern), str(entry.module)))
            except UnmatchedBracket:  # depmod leaves it out of the .bin
                continue
        yield from sorted(pairs, key=lambda pair: encode(pair[0]))

    def _match(self, name: str, text: str) -> Matches:
        file = self._file(TEXT_OF.get(name, name))
        trie = self._tries.get(name)
        if trie is None:
            index = self._open(name)
            if isinstance(index, BinIndex):
                return self._wildcard(index, name, text)
            trie = self._tries[name] = self._trie(name, index, file)
            self._opened[name] = b""  # a daemon need not keep the text beside the trie
        return tuple(Match(ModuleName(m.module), m.pattern, Where(file, m.line)) for m in trie.matches(text))

    def _trie(self, name: str, data: bytes, file: str) -> AliasTrie:
        from kmodd.alias_trie import AliasTrie  # only here: a tool that reads the .bin does not need it

        if name not in TEXT_OF:
            trie = AliasTrie.from_text(decode(data), file)
            self.problems += trie.problems
            return trie
        entries, problems = tables.builtin_modinfo(data, file)
        self.problems += problems
        aliases = [(entry.value, entry.module) for entry in entries if entry.key == "alias"]
        return AliasTrie.from_entries(aliases, builtin_order=True)

    def _dep_lines(self, data: bytes) -> dict[ModuleName, str]:
        if self._deps is None:
            self._deps, problems = tables.dep_lines(data, self._file("modules.dep"))
            self.problems += problems
        return self._deps

    # ── which of the twins ──

    def _open(self, name: str) -> bytes | BinIndex:
        """The index in the form to read, opened once; empty bytes where it has none."""
        if name not in self._opened:
            forms = [self._text, self._bin]
            if self._like_kmod or self._layer.is_stale(name):
                forms.reverse()
            found = next((index for form in forms if (index := form(name)) is not None), None)
            self._opened[name] = b"" if found is None else found
        return self._opened[name]

    def _text(self, name: str) -> bytes | None:
        return self._layer.read(TEXT_OF.get(name, name))

    def _bin(self, name: str) -> BinIndex | None:
        data = self._layer.read(name + ".bin")
        if not data:  # depmod without modules.builtin leaves an empty modules.builtin.bin
            return None
        try:
            return BinIndex(data, self._file(name + ".bin"))
        except BadIndex as error:
            self._damaged(error)
            return None

    # ── questions to a .bin: damage that shows only now is told once, and is no answer ──

    def _get(self, index: BinIndex, key: str) -> str | None:
        try:
            return index.get(key)
        except BadIndex as error:
            self._damaged(error)
            return None

    def _wildcard(self, index: BinIndex, name: str, text: str) -> Matches:
        at = Where(self._file(name + ".bin"), 0)
        try:
            return tuple(Match(ModuleName(hit.value.text), hit.pattern, at) for hit in index.wildcard(text))
        except BadIndex as error:
            self._damaged(error)
            return ()

    def _entries(self, index: BinIndex) -> Iterator[tuple[str, tuple[Value, ...]]]:
        try:
            yield from index.entries()
        except BadIndex as error:
            self._damaged(error)

    def _damaged(self, error: BadIndex) -> None:
        file, _, what = str(error).partition(": ")
        problem = Problem(Where(file, 0), 0, "", what)
        if problem not in self.problems:
            self.problems.append(problem)

    def _file(self, name: str) -> str:
        return self._layer.label + name

    def _absolute(self, path: str) -> str:
        return path if path.startswith("/") else f"{self._layer.directory}/{path}"
