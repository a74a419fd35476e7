"""Every alias pattern of one source, and which of them match a name: the answer of `modules.alias.bin`, without that file.

How it is built, from the outside in. Each level is made only when the first look-up needs it.

    text of modules.alias
      └ head     what a pattern has before its first `:` (`pci`, `usb`, `net_pf_10`). A look-up concerns one head. Patterns with
        │        a wildcard in it (`acpi*:…`, `char_major_4_*`) belong to every head that begins with what precedes the wildcard.
        └ _Head  two kinds of tables: patterns without wildcard by their whole text; the others by their *stem*, the text
          │      before the first wildcard, one dict for each length of stem. A head has few lengths (pci: five), so the
          │      look-up cuts the name at each of them and asks a dict: no search, and far fewer steps than one for each byte.
          └ bucket  the patterns of one stem. Their *tails*, from the first wildcard on, are compared one by one where they are
                    few (`_One`, `_Few`). Where many share a stem (`of:N*T*C…`, `pci:v*d*sv*sd*bc…`) each is filed under
                    its rarest literal piece (`_Many`), and only tails whose piece occurs in the name are compared.

A tail is matched at most by `str.find` of its literal pieces one after the other, which is fnmatch(3) where `*` is the only
wildcard; any other goes to `glob`. All keys are only necessary conditions, so no form of name is assumed anywhere.

Order of an answer, as in libkmod: by priority, that is by the module's first line; among equals what the walk over
kmod's trie meets later comes first (libkmod-index.c, index_searchwild and add_value). The walk meets shorter stems first,
under one stem the tails in byte order, the pattern without wildcard last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kmodd.errors import Problem, UnmatchedBracket, Where
from kmodd.glob import Fits, bytewise, compiled, is_literal
from kmodd.names import ModuleName, module_name, underscores

_WILD = "*?[\\"
_FEW = 3
"""So many tails of one stem are compared one by one: finding their pieces would cost as much."""


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

    __slots__ = ("_file", "_heads", "_lines", "_modules", "_open", "_parsed", "_patterns", "_rank", "_refused", "_wild_heads")

    def __init__(self, patterns: list[str], modules: list[str], lines: Sequence[int], file: str, problems: list[Problem]) -> None:
        """For the class methods below: the columns of the table, best priority first."""
        names = {module: module_name(module) for module in dict.fromkeys(modules)}
        self._patterns = patterns
        self._modules = [names[module] for module in modules]  # one object for each name
        self._lines = lines
        self._file = file
        self._parsed = problems
        self._rank = {name: rank for rank, name in enumerate(dict.fromkeys(names.values()))}
        self._refused: dict[int, Problem] | None = None
        self._heads: dict[str, list[int]] = {}
        self._wild_heads: dict[int, dict[str, list[int]]] = {}
        self._open: dict[str, _Head] = {}

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
        """All (pattern, module) in order of the source, patterns as they are spelled there; refused ones are left out."""
        bad = self._bad()
        return (
            (pattern, module)
            for number, (pattern, module) in enumerate(zip(self._patterns, self._modules, strict=True))
            if number not in bad
        )

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
        found: list[AliasMatch] = []
        for length, buckets in head.stems:
            bucket = buckets.get(text[:length])
            if bucket is not None:
                if isinstance(bucket, list):
                    bucket = buckets[text[:length]] = self._bucket(bucket, length)
                bucket.collect(text, length, found)
        literal = head.literal.get(text)
        if literal is not None:
            if isinstance(literal, list):
                literal = head.literal[text] = self._answer(literal)
            found += literal
        if len(found) > 1:
            found.reverse()
            if self._rank:
                found.sort(key=lambda match: self._rank[match.module])
        return tuple(found)

    def _bad(self) -> dict[int, Problem]:
        """The patterns that depmod refuses, by number."""
        if self._refused is None:
            self._refused = {}
            for number, pattern in enumerate(self._patterns):
                if "[" in pattern or "]" in pattern:
                    try:
                        underscores(pattern)
                    except UnmatchedBracket as error:
                        line = self._lines[number]
                        source = f"alias {pattern} {self._modules[number]}"
                        at = Where(self._file, line)
                        self._refused[number] = Problem(at, 7, source, f"expected a pattern with closed brackets: {error}")
        return self._refused

    def _normal(self, number: int) -> str:
        """The pattern as it is compared; empty where it is refused."""
        pattern = self._patterns[number]
        try:
            return bytewise(underscores(pattern))
        except UnmatchedBracket:
            return ""

    def _index_heads(self) -> None:
        """Sort all pattern numbers by head. The one step that looks at every pattern."""
        by_head: dict[str, list[int]] = {}
        for number, pattern in enumerate(self._patterns):
            head = pattern.partition(":")[0]
            numbers = by_head.get(head)
            if numbers is None:
                by_head[head] = [number]
            else:
                numbers.append(number)
        for head, numbers in by_head.items():
            name = bytewise(head.replace("-", "_"))
            if is_literal(name):
                self._heads.setdefault(name, []).extend(numbers)
            else:
                stem = _stem(name)
                self._wild_heads.setdefault(len(stem), {}).setdefault(stem, []).extend(numbers)

    def _open_head(self, name: str) -> _Head:
        """The tables of one head, made and kept. Heads that no pattern spells out share those of their longest wild head."""
        if not self._heads and not self._wild_heads:
            self._index_heads()
        numbers = list(self._heads.get(name, ()))
        key = name if numbers else "*"
        for length in sorted(self._wild_heads):
            wild = self._wild_heads[length].get(name[:length])
            if wild:
                numbers += wild
                key = key if key == name else f"{name[:length]}*"
        if key not in self._open:
            self._open[key] = self._tables(sorted(numbers))
        return self._open[key]

    def _tables(self, numbers: list[int]) -> _Head:
        stems: dict[int, dict[str, list[int] | _Bucket]] = {}
        literal: dict[str, list[int] | tuple[AliasMatch, ...]] = {}
        for number in numbers:
            pattern = self._normal(number)
            stem = _stem(pattern)
            if len(stem) == len(pattern):
                table = literal
            else:
                table = stems.setdefault(len(stem), {})
            numbers_there = table.get(stem)
            if numbers_there is None:
                table[stem] = [number]
            else:
                numbers_there.append(number)
        literal.pop("", None)
        return _Head(sorted(stems.items()), literal)

    def _answer(self, numbers: list[int]) -> tuple[AliasMatch, ...]:
        """What these patterns say when they match: in the order of the walk, which meets the later of two equal ones first."""
        return tuple(
            AliasMatch(self._patterns[number], self._modules[number], self._lines[number]) for number in reversed(numbers)
        )

    def _bucket(self, numbers: list[int], length: int) -> _Bucket:
        """The patterns of one stem, ready to be compared."""
        by_tail: dict[str, list[int]] = {}
        for number in numbers:
            by_tail.setdefault(self._normal(number)[length:], []).append(number)
        tails = [(_Tail(tail), self._answer(by_tail[tail])) for tail in sorted(by_tail, key=_walk_order)]
        if len(tails) == 1:
            return _One(*tails[0])
        if len(tails) <= _FEW:
            return _Few(tails)
        return _Many(tails)


def _walk_order(tail: str) -> str:
    """Sorts the tails of one stem as the walk meets them: in byte order, but a longer one before its own beginning."""
    return tail + "\u0100"


def _stem(pattern: str) -> str:
    """What precedes the first wildcard, bracket or backslash."""
    stem = pattern.partition("*")[0]
    if "?" in stem or "[" in stem or "\\" in stem:
        return stem[: min(at for at in map(stem.find, _WILD) if at >= 0)]
    return stem


def _split_clean(text: str) -> tuple[list[str], list[str], range] | None:
    """Patterns, modules and line numbers of a text just as depmod writes it; None where any line might be otherwise.

    Takes 4 ms for 26,000 lines, a fifth of reading line by line. Why it cannot go wrong: with n lines that each begin with `alias `, no other
    word `alias`, and 3n words of which every third is `alias`, each line has three words.
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
    """What AliasTrie is made of, out of a text that has some other line too. A pattern may hold blanks, a module not."""
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
    if text and not text.endswith("\n"):
        line = text.rpartition("\n")[2]
        at = Where(file, text.count("\n") + 1)
        problems.append(Problem(at, len(line) + 1, line, "expected a newline: the file may be cut off here"))
    return patterns, modules, numbers, file, problems


class _Tail:
    """What a pattern says after its stem; begins with a wildcard."""

    __slots__ = ("general", "last", "middle", "pieces")

    def __init__(self, tail: str) -> None:
        parts = tail.split("*")
        self.general: Fits | None = None
        self.middle = tuple(filter(None, parts[1:-1]))
        self.last = parts[-1]
        self.pieces: tuple[str, ...] = tuple(filter(None, parts))
        if not is_literal("".join(parts)):
            self.general = compiled(tail)
            sure = tail[: min(at for at in (tail.find("["), tail.find("\\"), len(tail)) if at >= 0)]
            self.pieces = tuple(filter(None, sure.replace("?", "*").split("*")))

    def fits(self, text: str, at: int) -> bool:
        """Whether the text from `at` on matches."""
        if self.general:
            return self.general(text, at)
        for piece in self.middle:
            at = text.find(piece, at)
            if at < 0:
                return False
            at += len(piece)
        return text.endswith(self.last, at)


_Filed = tuple[_Tail, tuple[AliasMatch, ...]]


class _Bucket:
    """The patterns of one stem."""

    __slots__ = ()

    def collect(self, text: str, at: int, found: list[AliasMatch]) -> None:
        """Append to `found` what matches the text from `at` on, the end of the stem."""
        raise NotImplementedError


class _One(_Bucket):
    """All with the same tail."""

    __slots__ = ("answer", "tail")

    def __init__(self, tail: _Tail, answer: tuple[AliasMatch, ...]) -> None:
        self.tail = tail
        self.answer = answer

    def collect(self, text: str, at: int, found: list[AliasMatch]) -> None:
        if self.tail.fits(text, at):
            found += self.answer


class _Few(_Bucket):
    """Some tails, compared one after the other."""

    __slots__ = ("tails",)

    def __init__(self, tails: list[_Filed]) -> None:
        self.tails = tuple(tails)

    def collect(self, text: str, at: int, found: list[AliasMatch]) -> None:
        for tail, answer in self.tails:
            if tail.fits(text, at):
                found += answer


class _Many(_Bucket):
    """Many tails: only those are compared whose rarest piece occurs in the text.

    Pieces with the same first byte share an *anchor*, the longest beginning they have in common. At each place where the
    text has the anchor, a dict over the first bytes of these pieces tells which lengths are worth asking the dict of whole pieces for.
    """

    __slots__ = ("anchors", "tails", "unfiled")

    def __init__(self, tails: list[_Filed]) -> None:
        self.tails = tuple(tails)
        counts = Counter(piece for tail, _ in tails for piece in set(tail.pieces))
        filed: dict[str, list[int]] = {}
        unfiled = []
        for number, (tail, _) in enumerate(tails):
            if tail.pieces:
                filed.setdefault(min(tail.pieces, key=lambda piece: (counts[piece], -len(piece))), []).append(number)
            else:
                unfiled.append(number)
        self.unfiled = tuple(unfiled)
        self.anchors = tuple(_Anchor(first, filed) for first in sorted({piece[0] for piece in filed}))

    def collect(self, text: str, at: int, found: list[AliasMatch]) -> None:
        numbers = list(self.unfiled)
        for anchor in self.anchors:
            here = text.find(anchor.text, at)
            while here >= 0:
                for size in anchor.sizes.get(text[here : here + anchor.size], ()):
                    numbers += anchor.pieces.get(text[here : here + size], ())
                here = text.find(anchor.text, here + 1)
        if len(numbers) > 1:
            numbers = sorted(set(numbers))
        for number in numbers:
            tail, answer = self.tails[number]
            if tail.fits(text, at):
                found += answer


class _Anchor:
    """The pieces with one first byte."""

    __slots__ = ("pieces", "size", "sizes", "text")

    def __init__(self, first: str, filed: dict[str, list[int]]) -> None:
        self.pieces = {piece: tuple(numbers) for piece, numbers in filed.items() if piece[0] == first}
        lowest, highest = min(self.pieces), max(self.pieces)
        common = next((n for n, pair in enumerate(zip(lowest, highest)) if pair[0] != pair[1]), min(len(lowest), len(highest)))
        self.text = lowest[:common]
        self.size = min(map(len, self.pieces))
        sizes: dict[str, set[int]] = {}
        for piece in self.pieces:
            sizes.setdefault(piece[: self.size], set()).add(len(piece))
        self.sizes = {start: tuple(sorted(lengths)) for start, lengths in sizes.items()}


class _Head:
    """The tables of one head. Lists of pattern numbers in them become buckets and answers when they are first hit."""

    __slots__ = ("literal", "stems")

    def __init__(
        self,
        stems: list[tuple[int, dict[str, list[int] | _Bucket]]],
        literal: dict[str, list[int] | tuple[AliasMatch, ...]],
    ) -> None:
        self.stems = tuple(stems)
        """Length of stem, stem → patterns; the shortest first."""
        self.literal = literal
