"""The index files of one module directory: read when they are first asked for, and kept.

Each index comes as a text and as its `.bin` twin (modules.builtin.alias.bin has modules.builtin.modinfo for a text).
Which one is read: see `LayerIndexes`. A damaged file is a Problem, and its twin is read instead where there is one.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass
from kmodd.errors import ParseError, Problem, UnmatchedBracket, Where
from kmodd.index import text_files
from kmodd.index.bin_reader import BinIndex
from kmodd.index.text_files import DepLine
from kmodd.names import ModuleName, module_of_path, underscores
from kmodd.text import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from kmodd.index.alias_trie import AliasTrie

    T = TypeVar("T")

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
        """Read what every plan needs. Symbols are left: few machines ever ask, and they are as big as half the rest."""
        self.dep("")
        self.is_builtin("")
        self.aliases("")
        self.builtin_aliases("")

    def dep(self, name: str) -> DepLine | None:
        """File and dependencies of a module, paths as printed; an empty path where its line says nothing."""
        line = self._ask(
            "modules.dep", lambda index: index.get(name), lambda text: self._dep_lines(text).get(ModuleName(name))
        )
        if line is None:
            return None
        found = text_files.dep_line(line)
        if found is None:
            return DepLine("", ())
        return DepLine(self._absolute(found.path), tuple(map(self._absolute, found.deps)))

    def names(self) -> tuple[ModuleName, ...]:
        """Every module of modules.dep."""
        return self._ask(
            "modules.dep",
            lambda index: tuple(ModuleName(key) for key, _ in index.entries()),
            lambda text: tuple(self._dep_lines(text)),
        )

    def is_builtin(self, name: str) -> bool:
        """Whether modules.builtin has it."""
        return self._ask(
            "modules.builtin", lambda index: index.get(name) is not None, lambda text: name in self._builtin_names(text)
        )

    def aliases(self, name: str) -> Matches:
        """The patterns of modules.alias that match, best module first."""
        return self._match("modules.alias", name)

    def builtin_aliases(self, name: str) -> Matches:
        """Those of the modules in the kernel's image, in the order of modules.builtin.alias.bin."""
        return self._match("modules.builtin.alias", name)

    def symbols(self, name: str) -> Matches:
        """Who exports `symbol:NAME`."""
        return self._ask(
            "modules.symbols",
            lambda index: self._bin_matches(index, "modules.symbols", name),
            lambda text: self._symbol_matches(text, name),
        )

    def dump(self, name: str) -> tuple[tuple[str, str], ...]:
        """Key and module of each entry of an alias index; keys normalised and in byte order, then modules in theirs."""
        if name in self._tries:  # its text was let go
            return self._text_entries(self._text(name) or b"")
        return self._ask(
            name,
            lambda index: tuple((key, value.text) for key, values in index.entries() for value in values),
            self._text_entries,
        )

    # ── questions to the two forms ──

    def _match(self, name: str, text: str) -> Matches:
        trie = self._tries.get(name)
        if trie is not None:
            return self._trie_matches(trie, name, text)
        return self._ask(
            name,
            lambda index: self._bin_matches(index, name, text),
            lambda data: self._trie_matches(self._trie(name, data), name, text),
        )

    def _bin_matches(self, index: BinIndex, name: str, text: str) -> Matches:
        at = Where(self._file(name + ".bin"), 0)
        return tuple(Match(ModuleName(hit.value.text), hit.pattern, at) for hit in index.wildcard(text))

    def _trie_matches(self, trie: AliasTrie, name: str, text: str) -> Matches:
        file = self._file(TEXT_OF.get(name, name))
        return tuple(Match(ModuleName(m.module), m.pattern, Where(file, m.line)) for m in trie.matches(text))

    def _symbol_matches(self, data: bytes, name: str) -> Matches:
        """There are no wildcards among symbols: the text is searched for the one line."""
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
            except UnmatchedBracket:  # depmod leaves it out of the .bin
                continue
        return tuple(sorted(pairs, key=lambda pair: encode(pair[0])))

    # ── the texts, taken apart once ──

    def _trie(self, name: str, data: bytes) -> AliasTrie:
        from kmodd.index.alias_trie import AliasTrie  # only here: a tool that reads the .bin does not need it

        file = self._file(TEXT_OF.get(name, name))
        if name in TEXT_OF:
            entries, problems = text_files.builtin_modinfo(data, file, only="alias")
            aliases = [(entry.value, entry.module) for entry in entries]
            trie = AliasTrie.from_entries(aliases, builtin_order=True)
        else:
            trie = AliasTrie.from_text(decode(data), file)
            problems = trie.problems
        self.problems += problems
        self._tries[name] = trie
        self._opened[name] = b""  # a daemon need not keep the text beside the trie
        return trie

    def _builtin_names(self, data: bytes) -> frozenset[str]:
        if self._builtins is None:
            paths, problems = text_files.module_paths(data, self._file("modules.builtin"))
            self._builtins = frozenset(module_of_path(path) for path in paths)
            self.problems += problems
        return self._builtins

    def _dep_lines(self, data: bytes) -> dict[ModuleName, str]:
        if self._deps is None:
            self._deps, problems = text_files.dep_lines(data, self._file("modules.dep"))
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
        except ParseError as error:
            self._damaged(error)
            return None

    def _ask(self, name: str, ask_bin: Callable[[BinIndex], T], ask_text: Callable[[bytes], T]) -> T:
        """Put a question to an index in the form that is read. Where its .bin turns out damaged, the text serves."""
        index = self._open(name)
        if isinstance(index, BinIndex):
            try:
                return ask_bin(index)
            except ParseError as error:
                self._damaged(error)
                index = self._opened[name] = self._text(name) or b""
        return ask_text(index)

    def _damaged(self, error: ParseError) -> None:
        file, _, what = str(error).partition(": ")
        problem = Problem(Where(file, 0), 0, "", what)
        if problem not in self.problems:
            self.problems.append(problem)

    def _file(self, name: str) -> str:
        return self._layer.label + name

    def _absolute(self, path: str) -> str:
        return path if path.startswith("/") else f"{self._layer.directory}/{path}"
