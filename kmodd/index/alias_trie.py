"""Match names against the alias patterns of one source, with the results of modules.alias.bin from its text.

The structure has four levels, each built by the first look-up that needs it:

    lists      pattern, module and line of every entry, highest priority first
      └ keys     the patterns in sorted order: a few bisections find all with a common beginning
          └ start    the first 13 bytes of a name (a PCI vendor, an ACPI ID, a USB product but for its last digit) → the
          │        lengths of the *stems* that may match such a name. A stem is the part of a pattern before its
          │        first wildcard. Longer stems are cut to the most common length, so there are few lengths, and a
          │        look-up cuts the name at each of them and searches one dict.
          └ tails    the rest of each pattern, a `Tail`. Few tails of a stem are compared one by one. Many tails of a
                     stem (`of:N*T*C…`, `pci:v*d*sv*sd*bc…`) are in `Many`, under their rarest literal piece; a
                     look-up compares only the tails whose piece is in the name.

Each level only excludes patterns that cannot match, without assumptions about the format of a name; `fnmatch` decides.

Matches are ordered as by libkmod: by priority, which is the first line of the module; with equal priority, a pattern
that the walk over kmod's trie reaches later comes first (libkmod-index.c: index_mm_searchwild, add_value). The walk
reaches shorter stems first and a pattern without wildcards last; below one stem it follows the order of bytes, and
reaches a longer pattern before its own beginning.

One deliberate difference: a `\\` before the first wildcard escapes the next byte, as in fnmatch(3) and for aliases of
modprobe.d; libkmod's walk reads it literally. No module of Debian has one.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from itertools import compress, count, repeat
from operator import contains

from kmodd.errors import Problem, UnmatchedBracket, Where
from kmodd.index.alias_tails import Many
from kmodd.index.fnmatch import bytewise, literal_start, uncompiled
from kmodd.index.fnmatch_regex import compiled
from kmodd.index.text_files import Match
from kmodd.names import ModuleName, module_name, underscores

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from kmodd.index.alias_tails import Tail
    from kmodd.index.fnmatch_regex import Fits

START = 13
"""Bytes of the start of a name. With more, there are as many starts as patterns; with fewer, the first look-up examines
thousands of patterns (`pci:v0000…`)."""
_SPECIAL = "*?[\\"
"""Characters that end a stem."""
_MAX_CHAR = "\u0100"
"""Greater than every character of a bytewise text."""
_COMPILE_AT = 8
"""Number of stems with the same tail from which it is compiled: 100 µs once, then half the time for each comparison."""
_MAX_UNKNOWN_STARTS = 4096
"""Maximum number of cached starts that begin no pattern: names come from outside, and must not exhaust memory."""


class AliasTrie:
    """The alias patterns of one source. Results never change; look-ups only build internal caches."""

    __slots__ = (
        "_file", "_keys", "_lengths", "_lines", "_modules", "_open", "_order", "_parsed", "_patterns", "_prefixes",
        "_rank", "_refused", "_specials", "_stems", "_tests", "_unknown_starts", "_uses",
    )  # fmt: skip

    def __init__(
        self, patterns: list[str], modules: list[str], lines: Sequence[int], file: str, problems: list[Problem]
    ) -> None:
        """Take one item of `patterns`, `modules` and `lines` for each entry, highest priority first.

        Use the class methods below instead.
        """
        self._patterns = patterns
        self._modules = modules
        self._lines = lines
        self._file = file
        self._parsed = problems
        self._rank: dict[str, int] | None = None
        self._refused: dict[int, Problem] | None = None
        self._keys: list[str] = []
        """The patterns with `_` for `-` (in brackets too), sorted by bytes."""
        self._order: Sequence[int] = ()
        """The number of the entry of each key."""
        self._specials = ""
        """Characters of _SPECIAL that occur in any pattern."""
        self._open: dict[str, tuple[int, ...]] = {}
        """Start of a name → lengths of the stems that may match it, ascending."""
        self._prefixes: dict[str, tuple[int, int, bool]] = {}
        """Beginning of a pattern, shorter than START → the range of the keys with it, and whether it is a stem."""
        self._unknown_starts = 0
        """Number of these starts that begin no pattern."""
        self._lengths: dict[tuple[int, ...], tuple[int, ...]] = {}
        """Tuple of lengths → the shared copy of it."""
        self._stems: dict[str, tuple[()] | Tail | Many] = {}
        """Stem → its tails; an empty tuple: not built yet."""
        self._tests: dict[str, Fits] = {}
        self._uses: dict[str, int] = {}

    @classmethod
    def from_text(cls, text: str, file: str) -> AliasTrie:
        """Parse the text of a modules.alias: comments, and lines `alias PATTERN MODULE` (kmod tools/depmod.c).

        file: its name in problems. Raises nothing; invalid lines are `problems`.
        """
        table = _split_clean(text)
        if not table:
            return cls(*_split_lines(text, file))
        trie = cls(*table, file, [])
        if _all_closed(text):
            trie._refused = {}
        return trie

    @classmethod
    def from_entries(
        cls, entries: Iterable[tuple[str, str]], file: str = "", *, builtin_order: bool = False
    ) -> AliasTrie:
        """Take pairs of pattern and module, highest priority first, from a source without lines.

        file: its name in matches. builtin_order: all entries have the same priority, as in modules.builtin.alias.bin.
        """
        pairs = list(entries)
        trie = cls([pair[0] for pair in pairs], [pair[1] for pair in pairs], (0,) * len(pairs), file, [])
        if builtin_order:
            trie._rank = {}
        return trie

    def __len__(self) -> int:
        return len(self._patterns) - len(self._refused_patterns())

    def entries(self) -> Iterator[tuple[str, ModuleName]]:
        """Yield pattern (as in the source) and module of all entries in order, except refused ones."""
        for number, pattern in enumerate(self._patterns):
            if number not in self._refused_patterns():
                yield pattern, module_name(self._modules[number])

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The invalid lines: without a module, or with an unmatched bracket, which depmod skips too."""
        found = [*self._parsed, *self._refused_patterns().values()]
        return tuple(sorted(found, key=lambda problem: problem.at.line))

    def matches(self, alias: str) -> tuple[Match, ...]:
        """Return all patterns that match `alias`, in libkmod's order. Raises nothing.

        alias: normalized by `names.underscores`. A module is in the result once for each of its matching patterns.
        """
        text = alias if alias.isascii() else bytewise(alias)
        start = text[:START]
        lengths = self._open.get(start) or self._add_start(start)
        if lengths[-1] > len(text):
            lengths = tuple(length for length in lengths if length <= len(text))
        stems = self._stems
        found: tuple[Match, ...] = ()
        for length in lengths:
            filed = stems.get(text[:length])
            if not filed:
                if filed is None:
                    continue
                filed = self._build_tails(text[:length])
            if isinstance(filed, tuple):  # one tail, the usual case
                fits, answer = filed
                if fits(text, length):
                    found += answer
                continue
            for number in filed.candidates(text, length):
                fits, answer = filed.tails[number] or self._tail(filed, number)
                if fits(text, length):
                    found += answer
        return found if len(found) < 2 else self._sorted(found)

    def _sorted(self, found: tuple[Match, ...]) -> tuple[Match, ...]:
        """Sort matches from the order of the walk into libkmod's: by priority, then the last reached first."""
        rank = self._rank
        if rank is None:
            # Spelled as by `module_name`, without executing byte code for each of 3,000 names.
            names = dict.fromkeys(map(str.replace, dict.fromkeys(self._modules), repeat("-"), repeat("_")))
            rank = self._rank = dict(zip(names, count()))
        if not rank:
            return found[::-1]
        if len(found) == 2:  # the usual case
            first, second = found
            return found if rank[first.module] < rank[second.module] else (second, first)
        latest_first = found[::-1]
        return tuple(sorted(latest_first, key=lambda match: rank[match.module]))

    def _refused_patterns(self) -> dict[int, Problem]:
        """Return the problems of the patterns that depmod refuses, by number."""
        if self._refused is None:
            self._refused = {}
            for number, pattern in enumerate(self._patterns):
                if ("[" in pattern or "]" in pattern) and self._normalized(number) is None:
                    source = f"alias {pattern} {self._modules[number]}"
                    at = Where(self._file, self._lines[number])
                    self._refused[number] = Problem(at, 7, source, "expected a pattern whose brackets are closed")
        return self._refused

    def _normalized(self, number: int) -> str | None:
        """Return the pattern in the form for comparison, or None if it is refused."""
        pattern = self._patterns[number]
        try:
            return bytewise(underscores(pattern))
        except UnmatchedBracket:
            return None

    def _sort(self) -> None:
        """Sort all patterns. No other step processes every pattern."""
        # No loop of byte code over all patterns: under an emulator it takes ten times as long as sorting.
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
        """Return the range of keys that begin with `start`, within `low` to `high`."""
        low = bisect_left(self._keys, start, low, high)
        return low, bisect_left(self._keys, start + _MAX_CHAR, low, high)

    def _any_begins(self, start: str, low: int, high: int) -> bool:
        """Return whether a key within `low` to `high` begins with `start`."""
        place = bisect_left(self._keys, start, low, high)
        return place < high and self._keys[place].startswith(start)

    def _add_start(self, start: str) -> tuple[int, ...]:
        """Return and cache the lengths of stems for names with this start, and add the stems to `_stems`."""
        if not self._keys:
            self._sort()
        lengths: list[int] = []
        low, high = 0, len(self._keys)
        known = False  # whether a pattern begins with the start
        for length in range(len(start) + 1):
            stem = start[:length]
            if length == START:
                low, high = self._range(stem, low, high)
                if known := low < high:
                    lengths += self._add_long_stems(low, high)
                break
            low, high, is_stem = self._prefixes.get(stem) or self._add_prefix(stem, low, high)
            if low == high:
                break
            known = length == len(start)
            if is_stem or (known and self._keys[low] == stem):
                lengths.append(length)
                self._stems.setdefault(stem, ())
            if start[length : length + 1] in tuple(_SPECIAL):  # not part of any stem
                break
        shared = tuple(lengths or (0,))
        shared = self._lengths.setdefault(shared, shared)
        self._unknown_starts += not known
        if known or self._unknown_starts <= _MAX_UNKNOWN_STARTS:
            self._open[start] = shared
        return shared

    def _add_prefix(self, prefix: str, low: int, high: int) -> tuple[int, int, bool]:
        """Return the range of keys, within `low` to `high`, that begin with `prefix`, and whether a wildcard follows.

        Stored if there are any: most names share their first bytes with others.
        """
        low, high = self._range(prefix, low, high)
        found = low, high, any(self._any_begins(prefix + special, low, high) for special in self._specials)
        if low < high:
            self._prefixes[prefix] = found
        return found

    def _add_long_stems(self, low: int, high: int) -> list[int]:
        """Add the stems of the keys from `low` to `high`, which have the same start, and return their lengths.

        Stems longer than the most common length are cut to it, so that look-ups try fewer lengths.
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

    def _members(self, stem: str) -> Sequence[int]:
        """Return the positions of the keys with this stem, in the order of the keys."""
        keys = self._keys
        if len(stem) >= START and self._open[stem[:START]][-1] == len(stem):
            low = high = bisect_left(keys, stem)
            while high < len(keys) and keys[high].startswith(stem):
                high += 1
            return range(low, high)
        low, high = self._range(stem, 0, len(keys))
        ends = [self._range(stem + special, low, high) for special in self._specials]
        places = [place for end in ends for place in range(*end)]
        while low < high and keys[low] == stem:
            places.append(low)
            low += 1
        return places

    def _build_tails(self, stem: str) -> Tail | Many:
        """Build the tails of a stem at its first hit, and store them in `_stems`."""
        places = self._members(stem)
        pattern = self._keys[places[0]] if len(places) == 1 else "["
        if "[" not in pattern and "]" not in pattern:  # one pattern, as for most PCI devices
            self._stems[stem] = one = self._test(pattern[len(stem) :]), self._alias_matches([self._order[places[0]]])
            return one
        by_tail: dict[str, list[int]] = {}
        for place in places:
            number, pattern = self._order[place], self._keys[place]
            if "[" in pattern or "]" in pattern:
                normalized = self._normalized(number)
                if normalized is None:
                    continue
                pattern = normalized
            by_tail.setdefault(pattern[len(stem) :], []).append(number)
        if len(by_tail) == 1:
            (tail, numbers) = by_tail.popitem()
            numbers.sort()
            self._stems[stem] = one = (self._test(tail), self._alias_matches(numbers))
            return one
        order = sorted(by_tail, key=_walk_order)
        self._stems[stem] = many = Many(order, [by_tail[tail] for tail in order])
        return many

    def _tail(self, many: Many, number: int) -> Tail:
        """Build the tail `number` when it is a candidate for the first time."""
        matches = self._alias_matches(sorted(many.numbers[number]))
        tail = many.tails[number] = self._test(many.spellings[number]), matches
        many.spellings[number], many.numbers[number] = "", ()
        return tail

    def _alias_matches(self, numbers: list[int]) -> tuple[Match, ...]:
        """Return the matches for equal patterns in the order of the walk: depmod stores later ones first."""
        patterns, modules, lines, file = self._patterns, self._modules, self._lines, self._file
        return tuple(
            [
                Match(module_name(modules[number]), patterns[number], Where(file, lines[number]))
                for number in reversed(numbers)
            ]
        )

    def _test(self, tail: str) -> Fits:
        """Return the test for a tail, shared by equal tails."""
        uses = self._uses[tail] = self._uses.get(tail, 0) + 1
        if uses == 1:
            self._tests[tail] = uncompiled(tail)
        elif uses == _COMPILE_AT:
            self._tests[tail] = compiled(tail)
        return self._tests[tail]


def _walk_order(tail: str) -> tuple[int, str]:
    """Return the sort key for tails of one (cut) stem in the order of the walk."""
    return len(literal_start(tail)), tail + _MAX_CHAR


def _split_clean(text: str) -> tuple[list[str], list[str], range] | None:
    """Return patterns, modules and line numbers of a text as written by depmod, or None if a line may differ.

    Takes 4 ms for 26,000 lines, a fifth of parsing line by line. The result is exact: if all blanks are single, every
    second word is `MODULE\nalias`, and there are no other line ends, then each line has three words.
    """
    at = comments = 0  # copies no part of the text: the first access to 1.6 MB of new memory takes as long as a search
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
    """Return whether every bracket of a text is matched within its pattern; False if unsure."""
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
    """Return the arguments of AliasTrie from a text with any lines. Patterns may contain blanks, module names not."""
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
    if line.strip():  # the last line, which is empty if the text ends in a newline
        problems.append(Problem(Where(file, number), len(line) + 1, line, "expected a newline: may be truncated here"))
    return patterns, modules, numbers, file, problems
