"""Every alias pattern of one source, and which of them match a name: what modules.alias.bin answers, without that file.

How it is built, from the outside in. Each level is made when the first look-up needs it.

    lists      pattern, module and line of every entry, best priority first
      └ head     what a pattern has before its first `:` (`pci`, `usb`, `net_pf_10`); a look-up concerns one head.
        │        Patterns with a wildcard in it (`acpi*:…`, `char_major_4_*`) belong to every head beginning like them.
        └ stem     what a pattern has before its first wildcard: one dict for each length of stem. A head has few
          │        lengths (pci: three, once longer stems are cut to the commonest length), so a look-up cuts the name
          │        at each of them and asks a dict. Patterns without any wildcard are in a dict of their own.
          └ tails    the rest, one `Tail` each. Few are compared one by one. Where many share a stem (`of:N*T*C…`,
                     `pci:v*d*sv*sd*bc…`), `Many` files each under its rarest literal piece, and a look-up compares
                     only tails whose piece is somewhere in the name.

All keys are necessary conditions only: nothing is assumed about the form of a name, and `glob` has the last word.

Order of an answer, as in libkmod: by priority, that is by the module's first line; among equals, what the walk over
kmod's trie meets later comes first (libkmod-index.c: index_mm_searchwild, add_value). That walk meets shorter stems
first, the pattern that is all stem last; under one stem it takes bytes in order, a longer pattern before its beginning.

One deliberate difference: a `\\` before the first wildcard escapes the next byte, as in fnmatch(3) and for an alias of
modprobe.d; libkmod's walk takes it literally there. No module of Debian has one.
"""

from __future__ import annotations

from kmodd.alias_tails import Few, Many
from kmodd.dataclass import dataclass
from kmodd.errors import Problem, UnmatchedBracket, Where
from kmodd.glob import bytewise, is_literal, literal_start, uncompiled
from kmodd.glob_regex import compiled
from kmodd.names import ModuleName, module_name, underscores

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from kmodd.alias_tails import Tail
    from kmodd.glob import Fits

_FEW = 2
"""So many tails of one stem are compared one by one: finding their pieces would cost as much."""
_OFTEN = 8
"""A tail that so many stems have is worth a regular expression: 100 µs to make, half the time to compare."""
_MOST_HEADS = 4096
"""So many heads are remembered; names are not ours to choose, and memory must not grow with them."""


@dataclass(frozen=True, slots=True)
class AliasMatch:
    """One pattern that matched."""

    pattern: str
    """As the file spells it, dashes kept."""
    module: ModuleName
    line: int
    """Its line in the text file; 0 where the source has no lines."""


class AliasTrie:
    """The patterns of one source. Never changes once made, as far as anyone can see."""

    __slots__ = (
        "_file", "_heads", "_lines", "_modules", "_open", "_parsed", "_patterns", "_rank", "_refused", "_tests",
        "_uses", "_wild_heads",
    )  # fmt: skip

    def __init__(
        self, patterns: list[str], modules: list[str], lines: Sequence[int], file: str, problems: list[Problem]
    ) -> None:
        """For the class methods below: one item for each entry, best priority first."""
        names = {module: module_name(module) for module in dict.fromkeys(modules)}
        self._patterns = patterns
        self._modules = [names[module] for module in modules]  # one object for each name
        self._lines = lines
        self._file = file
        self._parsed = problems
        self._rank = {name: rank for rank, name in enumerate(dict.fromkeys(names.values()))}
        self._refused: dict[int, Problem] | None = None
        self._heads: dict[str, list[int]] = {}
        self._wild_heads: dict[int, dict[str, list[int]]] = {}  # by length of what precedes the wildcard, and by that
        self._open: dict[str, _Head] = {}
        self._tests: dict[str, Fits] = {}
        self._uses: dict[str, int] = {}

    @classmethod
    def from_text(cls, text: str, file: str) -> AliasTrie:
        """The text of a modules.alias (depmod.d, kmod.md 3.2): comments, and lines `alias PATTERN MODULE`.

        `file` is its name in problems. Bad lines become `problems`, the others count. Nothing is raised.
        """
        table = _split_clean(text)
        if table:
            return cls(*table, file, [])
        return cls(*_split_lines(text, file))

    @classmethod
    def from_entries(cls, entries: Iterable[tuple[str, str]], *, builtin_order: bool = False) -> AliasTrie:
        """Pairs of pattern and module, best priority first, as in a .bin or in modules.builtin.modinfo; no lines.

        With `builtin_order` all have one priority, as in modules.builtin.alias.bin.
        """
        pairs = list(entries)
        trie = cls([pair[0] for pair in pairs], [pair[1] for pair in pairs], (0,) * len(pairs), "", [])
        if builtin_order:
            trie._rank = {}
        return trie

    def __len__(self) -> int:
        return len(self._patterns) - len(self._bad())

    def entries(self) -> Iterator[tuple[str, ModuleName]]:
        """All (pattern, module) in order of the source, patterns as spelled there; refused ones are left out."""
        for number, pattern in enumerate(self._patterns):
            if number not in self._bad():
                yield pattern, self._modules[number]

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Lines that could not be used: without a module, or with an unmatched bracket (which depmod skips too)."""
        return tuple(sorted([*self._parsed, *self._bad().values()], key=lambda problem: problem.at.line))

    def matches(self, alias: str) -> tuple[AliasMatch, ...]:
        """Every pattern that matches `alias`, which is normalised already (`names.underscores`), in libkmod's order.

        A module comes once for each of its patterns that match. Nothing is raised.
        """
        text = alias if alias.isascii() else bytewise(alias)
        name = text.partition(":")[0]
        head = self._open.get(name) or self._open_head(name)
        found: tuple[AliasMatch, ...] = ()
        for length, stems in head.stems:
            filed = stems.get(text[:length])
            if filed is None:
                continue
            tails: Sequence[Tail]
            if isinstance(filed, tuple):  # one tail, nearly always
                fits, answer = filed
                if fits(text, length):
                    found += answer
                continue
            if isinstance(filed, (int, list)):
                tails = self._ripe(stems, text[:length], filed)
            else:
                tails = filed.candidates(text, length)
            for fits, answer in tails:
                if fits(text, length):
                    found += answer
        if head.literal and text in head.literal:
            literal = head.literal[text]
            if not isinstance(literal, tuple):
                literal = head.literal[text] = self._answer(_numbers(literal))
            found += literal
        return found if len(found) < 2 else self._sorted(found)

    def _sorted(self, found: tuple[AliasMatch, ...]) -> tuple[AliasMatch, ...]:
        """What the walk met, in this order, as libkmod hands it out: best priority first, then what was met last."""
        rank = self._rank
        if not rank:
            return found[::-1]
        if len(found) == 2:  # nearly always
            first, second = found
            return found if rank[first.module] < rank[second.module] else (second, first)
        latest_first = found[::-1]
        return tuple(sorted(latest_first, key=lambda match: rank[match.module]))

    def _bad(self) -> dict[int, Problem]:
        """The patterns that depmod refuses, by number."""
        if self._refused is None:
            self._refused = {}
            for number, pattern in enumerate(self._patterns):
                if ("[" in pattern or "]" in pattern) and self._normal(number) is None:
                    source = f"alias {pattern} {self._modules[number]}"
                    at = Where(self._file, self._lines[number])
                    self._refused[number] = Problem(at, 7, source, "expected a pattern whose brackets are closed")
        return self._refused

    def _normal(self, number: int) -> str | None:
        """The pattern as it is compared; None where it is refused."""
        pattern = self._patterns[number]
        try:
            return bytewise(underscores(pattern))
        except UnmatchedBracket:
            return None

    def _index_heads(self) -> None:
        """Sort all pattern numbers by head. The one step that looks at every pattern."""
        by_head: dict[str, list[int]] = {}
        before, numbers = "\0", [0]  # neighbours mostly have one head
        for number, pattern in enumerate(self._patterns):
            if not pattern.startswith(before):
                head = pattern.partition(":")[0]
                before, numbers = head + ":", by_head.setdefault(head, [])
            numbers.append(number)
        for head, numbers in by_head.items():
            name = bytewise(head.replace("-", "_"))
            if is_literal(name):
                self._heads.setdefault(name, []).extend(numbers)
            else:
                stem = literal_start(name)
                self._wild_heads.setdefault(len(stem), {}).setdefault(stem, []).extend(numbers)

    def _open_head(self, name: str) -> _Head:
        """The tables of one head, made and kept. A head that no pattern spells out shares its longest wild one's."""
        if not self._heads and not self._wild_heads:
            self._index_heads()
        wild = [length for length in sorted(self._wild_heads) if name[:length] in self._wild_heads[length]]
        key = name if name in self._heads else f"{name[: wild[-1]]}*" if wild else "*"
        head = self._open.get(key)
        if head is None:
            numbers = list(self._heads.get(name, ()))
            for length in wild:
                numbers += self._wild_heads[length][name[:length]]
            head = self._open[key] = self._tables(sorted(numbers))
        if len(self._open) < _MOST_HEADS:
            self._open[name] = head
        return head

    def _tables(self, numbers: list[int]) -> _Head:
        """The patterns of one head by stem, those without wildcard by themselves."""
        literal: dict[str, _Raw] = {}
        by_length: dict[int, dict[str, _Raw]] = {}
        all_patterns = "".join([self._patterns[number] for number in numbers])
        plain = all_patterns.isascii() and not any(char in all_patterns for char in "-?[]\\")  # as all of pci's
        for number in numbers:
            pattern = self._patterns[number]
            if not plain and ("-" in pattern or "[" in pattern or "]" in pattern or not pattern.isascii()):
                normal = self._normal(number)
                if normal is None:
                    continue
                pattern = normal
            stem = pattern.partition("*")[0] if plain else literal_start(pattern)
            if len(stem) == len(pattern):
                _file(literal, stem, number)
            else:
                stems = by_length.get(len(stem))
                if stems is None:
                    stems = by_length[len(stem)] = {}
                _file(stems, stem, number)
        _cut(by_length)
        return _Head(tuple((length, {**by_length[length]}) for length in sorted(by_length)), {**literal})

    def _answer(self, numbers: list[int]) -> tuple[AliasMatch, ...]:
        """What these equal patterns say when they match: the walk meets the later first, as depmod filed them so."""
        patterns, modules, lines = self._patterns, self._modules, self._lines
        return tuple(AliasMatch(patterns[number], modules[number], lines[number]) for number in reversed(numbers))

    def _ripe(self, stems: _Stems, stem: str, raw: _Raw) -> tuple[Tail, ...]:
        """All tails of a stem that is hit for the first time, in the order of the walk. They replace the numbers."""
        by_tail: dict[str, list[int]] = {}
        for number in sorted(_numbers(raw)):
            pattern = self._normal(number)
            assert pattern is not None  # refused ones are in no table
            by_tail.setdefault(pattern[len(stem) :], []).append(number)
        order = sorted(by_tail, key=_walk_order)
        tails = tuple((self._test(tail), self._answer(by_tail[tail])) for tail in order)
        stems[stem] = tails[0] if len(tails) == 1 else Few(tails) if len(tails) <= _FEW else Many(order, tails)
        return tails

    def _test(self, tail: str) -> Fits:
        """What tells whether a text fits this tail. Equal tails share one."""
        uses = self._uses[tail] = self._uses.get(tail, 0) + 1
        if uses == 1:
            self._tests[tail] = uncompiled(tail)
        elif uses == _OFTEN:
            self._tests[tail] = compiled(tail)
        return self._tests[tail]


def _numbers(raw: _Raw) -> list[int]:
    return [raw] if isinstance(raw, int) else raw


def _file(table: dict[str, _Raw], key: str, number: int) -> None:
    """Add a number under a key. Nearly all keys have one, and a list for each would cost twice the memory."""
    there = table.get(key)
    if there is None:
        table[key] = number
    elif isinstance(there, int):
        table[key] = [there, number]
    else:
        there.append(number)


def _cut(by_length: dict[int, dict[str, _Raw]]) -> None:
    """File longer stems under their beginning of the commonest length: fewer lengths to ask for in every look-up."""
    commonest = max(by_length, key=lambda length: len(by_length[length]), default=0)
    for length in [length for length in by_length if length > commonest]:
        for stem, raw in by_length.pop(length).items():
            for number in _numbers(raw):
                _file(by_length[commonest], stem[:commonest], number)


def _walk_order(tail: str) -> tuple[int, str]:
    """Sorts the tails of one stem, or of one cut stem, as the walk meets them."""
    return len(literal_start(tail)), tail + "\u0100"


def _split_clean(text: str) -> tuple[list[str], list[str], range] | None:
    """Patterns, modules and line numbers of a text just as depmod writes it; None where any line might be otherwise.

    Takes 4 ms for 26,000 lines, a fifth of reading line by line. It cannot go wrong: with n lines that each begin with
    `alias `, no other word `alias`, and 3n words of which every third is `alias`, each line has three words.
    """
    first = 1
    while text.startswith("#"):
        text = text.partition("\n")[2]
        first += 1
    count = text.count("\n")
    words = text.split()
    if (
        text.endswith("\n")
        and len(words) == 3 * count
        and text.startswith("alias ")
        and text.count("\nalias ") == count - 1
        and " alias" not in text
        and words[::3].count("alias") == count
    ):
        return words[1::3], words[2::3], range(first, first + count)
    return None


def _split_lines(text: str, file: str) -> tuple[list[str], list[str], list[int], str, list[Problem]]:
    """What AliasTrie is made of, from a text with other lines too. A pattern may hold blanks, a module not."""
    patterns: list[str] = []
    modules: list[str] = []
    numbers: list[int] = []
    problems: list[Problem] = []
    for number, line in enumerate(text.split("\n"), 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        word, *rest = entry.split(None, 1)
        words = rest[0].rsplit(None, 1) if rest else []
        if word == "alias" and len(words) == 2:
            patterns.append(words[0])
            modules.append(words[1])
            numbers.append(number)
        else:
            expected = "a module after the pattern" if word == "alias" and words else "`alias PATTERN MODULE`"
            column = len(line) + 1 if word == "alias" else line.index(word) + 1
            problems.append(Problem(Where(file, number), column, line, f"expected {expected}"))
    if line.strip():  # the last one; what ends in a newline leaves an empty one
        problems.append(Problem(Where(file, number), len(line) + 1, line, "expected a newline: may be cut off here"))
    return patterns, modules, numbers, file, problems


if TYPE_CHECKING:
    _Raw = int | list[int]
    """Patterns by number, not looked at yet."""
    _Stems = dict[str, _Raw | Tail | Few | Many]


@dataclass(frozen=True, slots=True)
class _Head:
    """The tables of one head. What is raw in them is replaced when it is first hit."""

    stems: tuple[tuple[int, _Stems], ...]
    """Length of stem, and stem → tails; the shortest first."""
    literal: dict[str, _Raw | tuple[AliasMatch, ...]]
