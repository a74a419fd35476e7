"""Look up names in the indexes of a module tree (`Catalog`) and the configuration, in the order of `SOURCES`.

A catalog has one or more layers, each with the index files of one module directory; an upper layer hides the modules
of the lower ones. A layer reads and parses an index at the first query, and keeps it.

The order of look-up is kmod's (kmod_module_new_from_lookup): the first source with a hit ends it, all its hits count.
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
    """A module that a name resolves to, and the source that has it."""

    module: ModuleName
    source: str
    """`config alias`, `module name`, `symbol`, `command`, `alias`, `builtin name` or `builtin alias`."""
    pattern: str = ""
    """The pattern that matched, as in its file."""
    at: Where | None = None
    """Position of the pattern."""
    alias: str | None = None
    """Text by which `options` lines may name the module too: a configured pattern, for an index the looked-up name."""
    command: Command | None = None
    """The `install` line of a name without module file."""
    builtin: bool = False


class Catalog:
    """All indexes of one tree. Results never change: a changed tree needs a new Catalog."""

    def __init__(self, layers: Iterable[Layer], like_kmod: bool = False) -> None:
        """Take the layers, uppermost first.

        like_kmod: read `.bin` files if present, as kmod does, which is faster for a single query. Otherwise read the
        texts, which alone have the line of a pattern, and a `.bin` if its text is absent or older.
        """
        self.layers = tuple(LayerIndexes(layer, like_kmod) for layer in layers)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The problems in the indexes that have been read so far."""
        return tuple(problem for layer in self.layers for problem in layer.problems)

    @property
    def is_damaged(self) -> bool:
        """Whether an index that has been read so far lacks entries: a name without a match may have one."""
        return any(layer.is_damaged for layer in self.layers)

    def load(self) -> None:
        """Read every index except that of symbols now, not at the first query."""
        for layer in self.layers:
            layer.load()

    def dep(self, name: str) -> DepLine | None:
        """Return file and dependencies of a module, with paths for output, or None if the tree does not have it."""
        return next((found for layer in self.layers if (found := layer.dep(name)) is not None), None)

    def is_builtin(self, name: str) -> bool:
        """Return whether the module is built into the kernel (modules.builtin)."""
        return any(layer.is_builtin(name) for layer in self.layers)

    def has(self, name: str) -> bool:
        """Return whether the kernel has the module, in a file or built in."""
        return self.dep(name) is not None or self.is_builtin(name)

    def names(self) -> tuple[ModuleName, ...]:
        """Return every module with a file, in the order of modules.dep (of modules.dep.bin: by name)."""
        return tuple(dict.fromkeys(name for layer in self.layers for name in layer.names()))

    def aliases(self, name: str) -> Matches:
        """Return the entries of modules.alias that match `name`, by priority, those of upper layers first."""
        if len(self.layers) == 1:  # without a list to join: each name is looked up here
            return self.layers[0].aliases(name)
        return self._merged([layer.aliases(name) for layer in self.layers])

    def symbols(self, name: str) -> Matches:
        """Return the entries of modules.symbols for `symbol:NAME`, those of upper layers first."""
        return self._merged([layer.symbols(name) for layer in self.layers])

    def builtin_aliases(self, name: str) -> Matches:
        """Return the aliases of built-in modules that match `name`, those of upper layers first."""
        return self._merged([layer.builtin_aliases(name) for layer in self.layers])

    def dump(self, index: str) -> Iterator[tuple[str, str]]:
        """Yield key and module of each entry of `modules.alias` or `modules.symbols`, by bytes (kmod_dump_index)."""
        for layer in self.layers:
            yield from layer.dump(index)

    def _merged(self, matches: list[Matches]) -> Matches:
        """Join the matches of all layers without modules that an upper layer has."""
        if len(matches) == 1:  # the usual case
            return matches[0]
        found = list(matches[0]) if matches else []
        for depth in range(1, len(matches)):
            above = self.layers[:depth]
            found += [match for match in matches[depth] if not any(upper.dep(match.module) for upper in above)]
        return tuple(found)


class ConfigLines:
    """Index of the lines of a `Config` by name, with the results of a search through all lines, in file order.

    Most patterns in modprobe.d are plain names, and a plan looks up each of its modules. The index of each kind is
    built at its first query.
    """

    __slots__ = ("_blacklist", "_commands", "_config", "_options", "_patterns")

    def __init__(self, config: Config) -> None:
        self._config = config
        self._patterns: dict[str, Patterns] = {}
        self._blacklist: dict[str, Blacklist] | None = None
        self._commands: dict[str, tuple[Command, bool]] | None = None
        self._options: dict[str, list[int]] | None = None

    def aliases(self, name: str) -> list[Alias]:
        """Return the `alias` lines whose pattern matches `name`."""
        lines = self._config.aliases
        return [lines[number] for number in self._matching("alias", name, lines)]

    def softdeps(self, name: str) -> list[Softdep]:
        """Return the `softdep` lines whose pattern matches `name`. In kmod only the first of them counts."""
        lines = self._config.softdeps
        return [lines[number] for number in self._matching("softdep", name, lines)]

    def install(self, name: str) -> Command | None:
        """Return the first `install` line whose pattern matches `name`."""
        lines = self._config.installs
        return next((lines[number] for number in self._matching("install", name, lines)), None)

    def remove(self, name: str) -> Command | None:
        """Return the first `remove` line whose pattern matches `name`."""
        lines = self._config.removes
        return next((lines[number] for number in self._matching("remove", name, lines)), None)

    def command(self, name: str) -> tuple[Command, bool] | None:
        """Return the first `install` line, else `remove` line, for exactly this name, and whether it is `install`."""
        if self._commands is None:
            installs = [(line, True) for line in self._config.installs]
            lines = [*installs, *((line, False) for line in self._config.removes)]
            self._commands = {line.pattern: (line, is_install) for line, is_install in reversed(lines)}
        return self._commands.get(name)

    def blacklist(self, name: str) -> Blacklist | None:
        """Return the first line that blacklists exactly this module."""
        if self._blacklist is None:
            self._blacklist = {line.module: line for line in reversed(self._config.blacklist)}
        return self._blacklist.get(name)

    def options(self, name: str, alias: str | None) -> list[Options]:
        """Return the `options` lines for exactly this module name or the alias that resolved to the module."""
        lines = self._config.options
        if self._options is None:
            self._options = {}
            for number, line in enumerate(lines):
                self._options.setdefault(line.module, []).append(number)
        numbers = self._options.get(name, [])
        if alias is not None and alias != name and alias in self._options:
            numbers = sorted([*numbers, *self._options[alias]])
        return [lines[number] for number in numbers]

    def _matching(self, kind: str, name: str, lines: Sequence[Alias | Softdep | Command]) -> Sequence[int]:
        if not lines:
            return ()
        patterns = self._patterns.get(kind)
        if patterns is None:
            patterns = self._patterns[kind] = Patterns([line.pattern for line in lines])
        return patterns.fitting(name)


Mark = tuple[int, int, int, int, int] | None
"""Device, inode, size, mtime and ctime in ns of a file, to detect a change; None if it is missing."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Indexes and configuration: with the request and the kernel's state, they determine what is loaded.

    A change replaces the whole snapshot.
    """

    catalog: Catalog
    config: Config
    answers: dict[str, tuple[Hit, ...]] = field(default_factory=dict)
    """Cache of `lookup`; valid as long as the snapshot."""
    filed: list[ConfigLines] = field(default_factory=list)
    """Cache of `lines`; empty before the first use."""
    marks: tuple[tuple[str, Mark], ...] = ()
    """Marks of the files that it was read from; empty: it is never current."""

    @property
    def lines(self) -> ConfigLines:
        """The index of the configuration's lines by name."""
        if not self.filed:
            self.filed.append(ConfigLines(self.config))
        return self.filed[0]

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The problems of the configuration and of the indexes read so far."""
        return self.config.problems + self.catalog.problems


# ── the order of look-up ─────────────────────────────────────────────────────────────────────────────────────────────


def _config_aliases(name: str, snapshot: Snapshot) -> tuple[Hit, ...]:
    """Return the modules of matching `alias` lines, in file order. Their names are not looked up again."""
    if not snapshot.config.aliases:
        return ()
    return tuple(
        Hit(alias.module, "config alias", alias.pattern, alias.at, alias.pattern)
        for alias in snapshot.lines.aliases(name)
    )


def _module_names(name: str, snapshot: Snapshot) -> tuple[Hit, ...]:
    """Return the module of modules.dep with this name; names with `:` are no module names."""
    if ":" in name or snapshot.catalog.dep(name) is None:
        return ()
    return (Hit(_name_of(name), "module name"),)


def _symbols(name: str, snapshot: Snapshot) -> tuple[Hit, ...]:
    """Return the modules that export the symbol of `symbol:NAME`."""
    if not name.startswith("symbol:"):
        return ()
    return _index_hits("symbol", name, snapshot.catalog.symbols(name))


def _commands(name: str, snapshot: Snapshot) -> tuple[Hit, ...]:
    """Return the name itself if it has an `install` line, else a `remove` line, without wildcards."""
    if not snapshot.config.installs and not snapshot.config.removes:
        return ()
    found = snapshot.lines.command(name)
    if found is None:
        return ()
    command, is_install = found
    return (Hit(_name_of(name), "command", command.pattern, command.at, None, command if is_install else None),)


def _aliases(name: str, snapshot: Snapshot) -> tuple[Hit, ...]:
    """Return the modules of matching patterns in modules.alias, by priority."""
    return _index_hits("alias", name, snapshot.catalog.aliases(name))


def _builtin_names(name: str, snapshot: Snapshot) -> tuple[Hit, ...]:
    """Return the built-in module with this name."""
    return (Hit(_name_of(name), "builtin name", builtin=True),) if snapshot.catalog.is_builtin(name) else ()


def _builtin_aliases(name: str, snapshot: Snapshot) -> tuple[Hit, ...]:
    """Return the built-in modules with matching aliases."""
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
"""The sources in the order of look-up; the first one with a hit ends it (kmod_module_new_from_lookup)."""


MAX_RESULTS = 4096
"""Maximum number of cached results: names come from outside, and memory must not grow with them."""


def lookup(text: str, snapshot: Snapshot) -> tuple[Hit, ...]:
    """Return the modules that a name, alias or modalias resolves to, in the order of loading, with duplicates.

    Results are cached in the snapshot, MAX_RESULTS at most. Raises UnmatchedBracket.
    """
    hits = snapshot.answers.get(text)
    if hits is None:
        name = underscores(text)
        hits = ()
        for source in SOURCES:
            if hits := source(name, snapshot):
                break
        if len(snapshot.answers) >= MAX_RESULTS:
            snapshot.answers.clear()
        snapshot.answers[text] = hits
    return hits


def lookup_or_nothing(text: str, snapshot: Snapshot) -> tuple[Hit, ...]:
    """Do what `lookup` does, but return no hits for a name with an unmatched bracket, as in `modprobe NAME`."""
    try:
        return lookup(text, snapshot)
    except UnmatchedBracket:
        return ()


def _index_hits(source: str, name: str, matches: Matches, builtin: bool = False) -> tuple[Hit, ...]:
    return tuple([Hit(match.module, source, match.pattern, match.at, name, None, builtin) for match in matches])


def _name_of(name: str) -> ModuleName:
    """Return the module name that kmod derives from `name`: up to the first dot (modname_normalize)."""
    return module_name(name.partition(".")[0])
