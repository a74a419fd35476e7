"""What a module tree says about names: `Catalog`, and the order in which the sources are asked: `SOURCES`.

A catalog stands on one or several layers, each the index files of one module directory; the first layer is laid over
the others. Every index is read and taken apart when the first question needs it, and kept. Reading itself is the
layer's affair.

The order of look-up is kmod's (kmod_module_new_from_lookup): the first source with a hit wins, and all its hits count.
"""

from __future__ import annotations

from kmodd.config.modprobe_d import Command, Config
from kmodd.dataclass import dataclass, field
from kmodd.errors import Problem, UnmatchedBracket, Where
from kmodd.index.fnmatch import Patterns
from kmodd.index.layer import Layer, LayerIndexes, Matches
from kmodd.index.text_files import DepLine
from kmodd.names import ModuleName, module_name, underscores

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from kmodd.config.modprobe_d import Alias, Blacklist, Options, Softdep


@dataclass(frozen=True, slots=True)
class Hit:
    """One module that a name stands for, and by which source."""

    module: ModuleName
    source: str
    """Name of the source, as in SOURCES."""
    pattern: str = ""
    """The pattern that matched, as its file spells it."""
    at: Where | None = None
    """Where that pattern stands."""
    alias: str | None = None
    """The text by which `options` lines may name it too: a configured pattern, or for an index the name looked up."""
    command: Command | None = None
    """The line that makes a name without any file known."""
    builtin: bool = False


class Catalog:
    """All indexes of one tree. Answers never change: a tree that changed is a new Catalog."""

    def __init__(self, layers: Iterable[Layer], like_kmod: bool = False) -> None:
        """`like_kmod`: read the `.bin` files where there are any, as kmod does, quicker for a single question.

        Otherwise the texts, which alone can say in which line a pattern stands, and a `.bin` where its text is absent
        or older.
        """
        self.layers = tuple(LayerIndexes(layer, like_kmod) for layer in layers)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What could not be used in the indexes that were read so far."""
        return tuple(problem for layer in self.layers for problem in layer.problems)

    def load(self) -> None:
        """Read every index but that of symbols now rather than at the first question."""
        for layer in self.layers:
            layer.load()

    def dep(self, name: str) -> DepLine | None:
        """File and dependencies of a module, the paths as they are printed; None where the tree does not have it."""
        return next((found for layer in self.layers if (found := layer.dep(name)) is not None), None)

    def is_builtin(self, name: str) -> bool:
        """Whether the module is part of the kernel's image (modules.builtin)."""
        return any(layer.is_builtin(name) for layer in self.layers)

    def names(self) -> tuple[ModuleName, ...]:
        """Every module that has a file, in the order of modules.dep (of its `.bin`: by name)."""
        return tuple(dict.fromkeys(name for layer in self.layers for name in layer.names()))

    def aliases(self, name: str) -> Matches:
        """What modules.alias has for `name`, best first. Upper layers come first and hide their modules below."""
        return self._over([layer.aliases(name) for layer in self.layers])

    def symbols(self, name: str) -> Matches:
        """Likewise modules.symbols, for `symbol:NAME`."""
        return self._over([layer.symbols(name) for layer in self.layers])

    def builtin_aliases(self, name: str) -> Matches:
        """Likewise the aliases of modules that are part of the kernel's image."""
        return self._over([layer.builtin_aliases(name) for layer in self.layers])

    def dump(self, index: str) -> Iterator[tuple[str, str]]:
        """Key and module of every entry of `modules.alias` or `modules.symbols`, in byte order (kmod_dump_index)."""
        for layer in self.layers:
            yield from layer.dump(index)

    def _over(self, matches: list[Matches]) -> Matches:
        """One answer out of the layers': what an upper layer has, a lower one does not bring in again."""
        found = list(matches[0]) if matches else []
        for depth in range(1, len(matches)):
            above = self.layers[:depth]
            found += [match for match in matches[depth] if not any(upper.dep(match.module) for upper in above)]
        return tuple(found)


class ConfigLines:
    """Which lines of a `Config` concern a name: what going through all of them would find, by a dict.

    Nearly all patterns in modprobe.d are plain names, and a plan asks for each module that it brings along. Each kind
    is filed at the first question; answers are in file order.
    """

    __slots__ = ("_blacklist", "_config", "_options", "_patterns")

    def __init__(self, config: Config) -> None:
        self._config = config
        self._patterns: dict[str, Patterns] = {}
        self._blacklist: dict[str, Blacklist] | None = None
        self._options: dict[str, list[int]] | None = None

    def aliases(self, name: str) -> list[Alias]:
        """The `alias` lines whose pattern matches."""
        lines = self._config.aliases
        return [lines[number] for number in self._fitting("alias", name, lines)]

    def softdeps(self, name: str) -> list[Softdep]:
        """The `softdep` lines that fit. In kmod only the first of them counts."""
        lines = self._config.softdeps
        return [lines[number] for number in self._fitting("softdep", name, lines)]

    def install(self, name: str) -> Command | None:
        """The first `install` line that fits."""
        lines = self._config.installs
        return next((lines[number] for number in self._fitting("install", name, lines)), None)

    def remove(self, name: str) -> Command | None:
        """The first `remove` line that fits."""
        lines = self._config.removes
        return next((lines[number] for number in self._fitting("remove", name, lines)), None)

    def blacklist(self, name: str) -> Blacklist | None:
        """The first line that blacklists exactly this module."""
        if self._blacklist is None:
            self._blacklist = {line.module: line for line in reversed(self._config.blacklist)}
        return self._blacklist.get(name)

    def options(self, name: str, alias: str | None) -> list[Options]:
        """The `options` lines for a module's name or the alias it was reached by, as literal text."""
        lines = self._config.options
        if self._options is None:
            self._options = {}
            for number, line in enumerate(lines):
                self._options.setdefault(line.module, []).append(number)
        numbers = self._options.get(name, [])
        if alias is not None and alias != name and alias in self._options:
            numbers = sorted([*numbers, *self._options[alias]])
        return [lines[number] for number in numbers]

    def _fitting(self, kind: str, name: str, lines: Sequence[Alias | Softdep | Command]) -> Sequence[int]:
        if not lines:
            return ()
        patterns = self._patterns.get(kind)
        if patterns is None:
            patterns = self._patterns[kind] = Patterns([line.pattern for line in lines])
        return patterns.fitting(name)


Mark = tuple[int, int, int, int] | None
"""Device, inode, size and mtime in ns of a file, to detect a change; None if it is missing."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that decides what gets loaded, but for the request and the kernel's state. Replaced whole, never changed."""

    catalog: Catalog
    config: Config
    answers: dict[str, tuple[Hit, ...]] = field(default_factory=dict)
    """What `lookup` has found: nothing here changes, so neither does an answer."""
    filed: list[ConfigLines] = field(default_factory=list)
    """`lines`, once somebody asked for them."""

    @property
    def lines(self) -> ConfigLines:
        """The lines of the configuration by the names that they concern."""
        if not self.filed:
            self.filed.append(ConfigLines(self.config))
        return self.filed[0]

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Every line of configuration and indexes that could not be used, as far as they were read."""
        return self.config.problems + self.catalog.problems


# ── the order of look-up ─────────────────────────────────────────────────────────────────────────────────────────────


def _config_aliases(name: str, snapshot: Snapshot) -> tuple[Hit, ...]:
    """Every `alias` line that matches, in file order. The module it names is not looked up again."""
    return tuple(
        Hit(alias.module, "config alias", alias.pattern, alias.at, alias.pattern)
        for alias in snapshot.lines.aliases(name)
    )


def _module_names(name: str, snapshot: Snapshot) -> tuple[Hit, ...]:
    """A module of modules.dep; names with `:` are never one."""
    if ":" in name or snapshot.catalog.dep(name) is None:
        return ()
    return (Hit(_cut(name), "module name"),)


def _symbols(name: str, snapshot: Snapshot) -> tuple[Hit, ...]:
    """`symbol:NAME`, the module that exports it."""
    if not name.startswith("symbol:"):
        return ()
    return _index_hits("symbol", name, snapshot.catalog.symbols(name))


def _commands(name: str, snapshot: Snapshot) -> tuple[Hit, ...]:
    """The first `install` line, else the first `remove` line, for exactly this name: here no wildcards."""
    for commands in (snapshot.config.installs, snapshot.config.removes):
        for command in commands:
            if command.pattern == name:
                preset = command if commands is snapshot.config.installs else None
                return (Hit(_cut(name), "command", command.pattern, command.at, None, preset),)
    return ()


def _aliases(name: str, snapshot: Snapshot) -> tuple[Hit, ...]:
    """modules.alias: every pattern that matches, best module first."""
    return _index_hits("alias", name, snapshot.catalog.aliases(name))


def _builtin_names(name: str, snapshot: Snapshot) -> tuple[Hit, ...]:
    """A module that is part of the kernel's image."""
    return (Hit(_cut(name), "builtin name", builtin=True),) if snapshot.catalog.is_builtin(name) else ()


def _builtin_aliases(name: str, snapshot: Snapshot) -> tuple[Hit, ...]:
    """The aliases of those."""
    return _index_hits("builtin alias", name, snapshot.catalog.builtin_aliases(name), builtin=True)


SOURCES: tuple[Callable[[str, Snapshot], tuple[Hit, ...]], ...] = (
    _config_aliases,
    _module_names,
    _symbols,
    _commands,
    _aliases,
    _builtin_names,
    _builtin_aliases,
)
"""Asked in this order; the first that has a hit ends the search (kmod_module_new_from_lookup)."""


MAX_RESULTS = 4096
"""So many are remembered: names are not ours to choose, and memory must not grow with them."""


def lookup(text: str, snapshot: Snapshot) -> tuple[Hit, ...]:
    """The modules that a name, alias or modalias stands for, in the order of loading; duplicates stay.

    The last few thousand answers are remembered. Raises UnmatchedBracket.
    """
    hits = snapshot.answers.get(text)
    if hits is None:
        name = underscores(text)
        hits = next((found for source in SOURCES if (found := source(name, snapshot))), ())
        if len(snapshot.answers) >= MAX_RESULTS:
            snapshot.answers.clear()
        snapshot.answers[text] = hits
    return hits


def lookup_or_nothing(text: str, snapshot: Snapshot) -> tuple[Hit, ...]:
    """`lookup`, where a name with an unmatched bracket simply matches nothing, as in `modprobe NAME`."""
    try:
        return lookup(text, snapshot)
    except UnmatchedBracket:
        return ()


def _index_hits(source: str, name: str, matches: Matches, builtin: bool = False) -> tuple[Hit, ...]:
    return tuple(Hit(match.module, source, match.pattern, match.at, name, None, builtin) for match in matches)


def _cut(name: str) -> ModuleName:
    """A name as kmod makes a module of it: up to the first dot (kmod_module_new_from_name, modname_normalize)."""
    return module_name(name.partition(".")[0])


@dataclass(frozen=True, slots=True)
class TreeSnapshot(Snapshot):
    """A snapshot with the marks of the files it was read from."""

    marks: tuple[tuple[str, Mark], ...] = ()
