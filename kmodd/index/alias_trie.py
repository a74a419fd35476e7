"""Every alias pattern of one source, and which of them match a name: what modules.alias.bin answers, without that file.

How it is built, from the outside in. Each level is made when the first look-up needs it.

    lists      pattern, module and line of every entry, best priority first
      └ keys     the same patterns sorted, so that a few bisections find all that begin alike, and nobody has to look at
        │        the others
        └ start    the first 14 bytes of a name, which is as far as a PCI vendor, a USB product or an ACPI id goes: how
          │        long the *stems* are that may concern such a name. A stem is what a pattern has before its first
          │        wildcard. There are few lengths, once longer stems are cut to the commonest length, so a look-up
          │        cuts the name at each of them and asks one dict.
          └ tails    the rest, one `Tail` each. Few are compared one by one. Where many share a stem (`of:N*T*C…`,
                     `pci:v*d*sv*sd*bc…`), `Many` files each under its rarest literal piece, and a look-up compares
                     only tails whose piece is somewhere in the name.

All of these are necessary conditions only: nothing is assumed about the form of a name; `fnmatch` decides.

Order of an answer, as in libkmod: by priority, that is by the module's first line; among equals, what the walk over
kmod's trie meets later comes first (libkmod-index.c: index_mm_searchwild, add_value). That walk meets shorter stems
first, the pattern that is all stem last; under one stem it takes bytes in order, a longer pattern before its beginning.

One deliberate difference: a `\\` before the first wildcard escapes the next byte, as in fnmatch(3) and for an alias of
modprobe.d; libkmod's walk takes it literally there. No module of Debian has one.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from itertools import compress, count, repeat
from operator import contains

from kmodd.errors import Problem, UnmatchedBracket, Where
from kmodd.index.alias_tails import AliasMatch, Many
from kmodd.index.fnmatch import bytewise, literal_start, uncompiled
from kmodd.index.fnmatch_regex import compiled
from kmodd.names import ModuleName, module_name, underscores

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from kmodd.index.alias_tails import Tail
    from kmodd.index.fnmatch_regex import Fits

START = 13
"""So many bytes of a name are its start: with more there would be as many starts as patterns, with fewer the first
look-up would have to sort out thousands of them (`pci:v0000…`)."""
_SPECIAL = "*?[\\"
"""A stem ends before any of these."""
_BEHIND = "\u0100"
"""Behind every bytewise text."""
_OFTEN = 8
"""A tail that so many stems have is worth a regular expression: 100 µs to make, half the time to compare."""
_MAX_STARTS = 4096
"""So many starts that no pattern spells out are remembered; names are not ours to choose, and memory must not grow
with them."""


class AliasTrie:
    """The patterns of one source. Never changes once made, as far as anyone can see."""

    __slots__ = (
        "_file", "_keys", "_lengths", "_lines", "_modules", "_open", "_order", "_parsed", "_patterns",
        "_rank", "_refused", "_specials", "_stems", "_strange", "_tests", "_uses",
    )  # fmt: skip

    def __init__(
        self, patterns: list[str], modules: list[str], lines: Sequence[int], file: str, problems: list[Problem]
    ) -> None:
        """For the class methods below: one item for each entry, best priority first."""
        self._patterns = patterns
        self._modules = modules
        self._lines = lines
        self._file = file
        self._parsed = problems
        self._rank: dict[str, int] | None = None
        self._refused: dict[int, Problem] | None = None
        self._keys: list[str] = []
        """The patterns as they are compared, but for dashes in brackets; in order of their bytes."""
        self._order: Sequence[int] = ()
        """The number of each."""
        self._specials = ""
        """Those of _SPECIAL that any pattern has."""
        self._open: dict[str, tuple[int, ...]] = {}
        """Start of a name → lengths of the stems that may concern it, the shortest first."""
        self._strange = 0
        """How many of these starts no pattern spells out."""
        self._lengths: dict[tuple[int, ...], tuple[int, ...]] = {}
        """Each such tuple once."""
        self._stems: dict[str, tuple[()] | Tail | Many] = {}
        """Stem → tails; empty: not looked at yet."""
        self._tests: dict[str, Fits] = {}
        self._uses: dict[str, int] = {}

    @classmethod
    def from_text(cls, text: str, file: str) -> AliasTrie:
        """The text of a modules.alias (kmod tools/depmod.c): comments, and lines `alias PATTERN MODULE`.

        `file` is its name in problems. Bad lines become `problems`, the others count. Nothing is raised.
        """
        table = _split_clean(text)
        if not table:
            return cls(*_split_lines(text, file))
        trie = cls(*table, file, [])
        if _all_closed(text):
            trie._refused = {}
        return trie

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
                yield pattern, module_name(self._modules[number])

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Lines that could not be used: without a module, or with an unmatched bracket (which depmod skips too)."""
        return tuple(sorted([*self._parsed, *self._bad().values()], key=lambda problem: problem.at.line))

    def matches(self, alias: str) -> tuple[AliasMatch, ...]:
        """Every pattern that matches `alias`, which is normalised already (`names.underscores`), in libkmod's order.

        A module comes once for each of its patterns that match. Nothing is raised.
        """
        text = alias if alias.isascii() else bytewise(alias)
        start = text[:START]
        lengths = self._open.get(start) or self._open_start(start)
        if lengths[-1] > len(text):
            lengths = tuple(length for length in lengths if length <= len(text))
        stems = self._stems
        found: tuple[AliasMatch, ...] = ()
        for length in lengths:
            filed = stems.get(text[:length])
            if not filed:
                if filed is None:
                    continue
                filed = self._ripe(text[:length])
            if isinstance(filed, tuple):  # one tail, nearly always
                fits, answer = filed
                if fits(text, length):
                    found += answer
                continue
            for number in filed.candidates(text, length):
                fits, answer = filed.tails[number] or self._tail(filed, number)
                if fits(text, length):
                    found += answer
        return found if len(found) < 2 else self._sorted(found)

    def _sorted(self, found: tuple[AliasMatch, ...]) -> tuple[AliasMatch, ...]:
        """What the walk met, in this order, as libkmod hands it out: best priority first, then what was met last."""
        rank = self._rank
        if rank is None:
            # As `module_name` spells them; no byte code for each of 3,000.
            names = dict.fromkeys(map(str.replace, dict.fromkeys(self._modules), repeat("-"), repeat("_")))
            rank = self._rank = dict(zip(names, count()))
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

    def _sort(self) -> None:
        """Put all patterns in order. The one step that looks at every pattern."""
        # No loop of byte code over all of them: under an emulator that is ten times the time of the sorting.
        keys = list(self._patterns)
        for number in compress(count(), map(contains, keys, repeat("-"))):
            keys[number] = keys[number].replace("-", "_")
        together = "".join(keys)
        if not together.isascii():
            keys = list(map(bytewise, keys))
        self._order = array("I", sorted(range(len(keys)), key=keys.__getitem__))
        self._keys = list(map(keys.__getitem__, self._order))
        self._specials = "".join(special for special in _SPECIAL if special in together)

    def _range(self, start: str, low: int, high: int) -> tuple[int, int]:
        """Where the keys stand that begin with `start`, among those from `low` to `high`."""
        low = bisect_left(self._keys, start, low, high)
        return low, bisect_left(self._keys, start + _BEHIND, low, high)

    def _is_there(self, start: str, low: int, high: int) -> bool:
        """Whether any key among those begins with `start`."""
        place = bisect_left(self._keys, start, low, high)
        return place < high and self._keys[place].startswith(start)

    def _open_start(self, start: str) -> tuple[int, ...]:
        """The lengths of stems for names that begin so, made and kept; the stems themselves are filed."""
        if not self._keys:
            self._sort()
        lengths: list[int] = []
        low, high = 0, len(self._keys)
        spelled = False  # some pattern begins so
        for length in range(len(start) + 1):
            stem = start[:length]
            low, high = self._range(stem, low, high)
            if low == high:
                break
            spelled = length == len(start)
            if length == START:
                lengths += self._file_long(low, high)
                break
            whole = spelled and self._keys[low] == stem
            if whole or any(self._is_there(stem + special, low, high) for special in self._specials):
                lengths.append(length)
                self._stems.setdefault(stem, ())
            if start[length : length + 1] in tuple(_SPECIAL):  # no stem has that
                break
        shared = tuple(lengths or (0,))
        shared = self._lengths.setdefault(shared, shared)
        self._strange += not spelled
        if spelled or self._strange <= _MAX_STARTS:
            self._open[start] = shared
        return shared

    def _file_long(self, low: int, high: int) -> list[int]:
        """File the stems of these keys, which have one start, and tell their lengths.

        Longer stems go under their beginning of the commonest length: fewer lengths to ask for in every look-up.
        """
        keys = self._keys[low:high]
        together = "".join(keys)
        if "?" in together or "[" in together or "\\" in together:
            stems = list(map(literal_start, keys))
        else:
            stems = [key.partition("*")[0] for key in keys]
        counts = Counter(map(len, stems))
        longest = max(sorted(counts), key=counts.__getitem__)
        for stem in stems:
            self._stems[stem[:longest]] = ()
        return sorted({min(length, longest) for length in counts})

    def _members(self, stem: str) -> Iterable[int]:
        """Where the keys stand that are filed under a stem, in their order."""
        low, high = self._range(stem, 0, len(self._keys))
        if len(stem) >= START and self._open[stem[:START]][-1] == len(stem):
            return range(low, high)
        ends = [self._range(stem + special, low, high) for special in self._specials]
        places = [place for end in ends for place in range(*end)]
        while low < high and self._keys[low] == stem:
            places.append(low)
            low += 1
        return places

    def _ripe(self, stem: str) -> Tail | Many:
        """All tails of a stem that is hit for the first time. They replace the mark that it is there."""
        by_tail: dict[str, list[int]] = {}
        for place in self._members(stem):
            number, pattern = self._order[place], self._keys[place]
            if "[" in pattern or "]" in pattern:
                normal = self._normal(number)
                if normal is None:
                    continue
                pattern = normal
            by_tail.setdefault(pattern[len(stem) :], []).append(number)
        if len(by_tail) == 1:
            (tail, numbers) = by_tail.popitem()
            numbers.sort()
            self._stems[stem] = one = (self._test(tail), self._answer(numbers))
            return one
        order = sorted(by_tail, key=_walk_order)
        self._stems[stem] = many = Many(order, [by_tail[tail] for tail in order])
        return many

    def _tail(self, many: Many, number: int) -> Tail:
        """One of many tails, made when it is first a candidate."""
        tail = many.tails[number] = self._test(many.spellings[number]), self._answer(sorted(many.numbers[number]))
        many.spellings[number], many.numbers[number] = "", ()
        return tail

    def _answer(self, numbers: list[int]) -> tuple[AliasMatch, ...]:
        """What these equal patterns say when they match: the walk meets the later first, as depmod filed them so."""
        patterns, modules, lines = self._patterns, self._modules, self._lines
        return tuple(
            [AliasMatch(patterns[number], module_name(modules[number]), lines[number]) for number in reversed(numbers)]
        )

    def _test(self, tail: str) -> Fits:
        """What tells whether a text fits this tail. Equal tails share one."""
        uses = self._uses[tail] = self._uses.get(tail, 0) + 1
        if uses == 1:
            self._tests[tail] = uncompiled(tail)
        elif uses == _OFTEN:
            self._tests[tail] = compiled(tail)
        return self._tests[tail]


def _walk_order(tail: str) -> tuple[int, str]:
    """Sorts the tails of one stem, or of one cut stem, as the walk meets them."""
    return len(literal_start(tail)), tail + "\u0100"


def _split_clean(text: str) -> tuple[list[str], list[str], range] | None:
    """Patterns, modules and line numbers of a text just as depmod writes it; None where any line might be otherwise.

    Takes 4 ms for 26,000 lines, a fifth of reading line by line. It cannot go wrong: where blanks stand alone, every
    second piece between them is `MODULE\nalias`, and there are no more line ends than these, each line has three words.
    """
    at = comments = 0  # no part of the text is copied: 1.6 MB that nobody has touched yet take as long as a search
    while text.startswith("#", at):
        at = text.find("\n", at) + 1
        comments += 1
        if not at:
            return None
    if not (text.startswith("alias ", at) and text.endswith("\n") and text.isascii()):
        return None
    if any(space in text for space in ("  ", *"\t\v\f\r\x1c\x1d\x1e\x1f")):
        return None
    pieces = text.split(" ")
    pieces[-1] += "alias"
    words = text.count(" ", 0, at)  # before the first `alias`
    patterns, ends = pieces[words + 1 :: 2], pieces[words + 2 :: 2]
    if len(ends) != len(patterns) or text.count("\n", at) != len(ends):
        return None
    kinds = dict.fromkeys(ends)
    listed = f" {' '.join(kinds)} "
    if not listed.count("\n") == listed.count("\nalias ") == len(kinds) or " \n" in listed:
        return None
    modules = dict(zip(kinds, listed[1:-1].replace("\nalias", "").split(" "), strict=True))
    return patterns, list(map(modules.__getitem__, ends)), range(comments + 1, comments + 1 + len(ends))


def _all_closed(text: str) -> bool:
    """Whether all brackets of a text surely have their partner in the same pattern."""
    pairs = 0
    at = text.find("[")
    while at >= 0:
        end = text.find("]", at)
        if end < 0 or " " in text[at:end]:
            return False
        pairs += 1
        at = text.find("[", end)
    return text.count("]") == pairs


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
