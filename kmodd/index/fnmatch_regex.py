"""Compile patterns of `fnmatch` with `?`, brackets or backslashes, and frequently used ones.

Most patterns become one regular expression. It never backtracks over more than one `*`: text between two `*` matches at
its first occurrence only, and the text after the last `*` is searched from the end. A bracket may end at different
places for different bytes (`[[:-[::]`: glibc reads members up to a hit, and skips the rest by other rules). A pattern
with such a bracket is matched step by step.
"""

from __future__ import annotations

import re
from functools import lru_cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    Fits = Callable[[str, int], object]
    """Function of a bytewise text and a position; its result is true if the text from there on matches."""

_END: Final = "\u0100"
"""Terminator of a pattern, like NUL in C; no bytewise text contains it."""

_CLASS: Final = r":([a-y]*):\]"
_EQUAL: Final = r"=([^\u0100])=\]"
_BYTES: Final = "".join(map(chr, range(256)))


def _chars(test: Callable[[str], bool]) -> frozenset[str]:
    return frozenset(char for char in _BYTES[:128] if test(char))


_CLASSES: Final = {
    "alnum": _chars(str.isalnum),
    "alpha": _chars(str.isalpha),
    "blank": frozenset(" \t"),
    "cntrl": _chars(lambda char: char < " " or char == "\x7f"),
    "digit": _chars(str.isdigit),
    "graph": _chars(lambda char: "!" <= char <= "~"),
    "lower": _chars(str.islower),
    "print": _chars(lambda char: " " <= char <= "~"),
    "punct": _chars(lambda char: "!" <= char <= "~" and not char.isalnum()),
    "space": frozenset(" \t\n\v\f\r"),
    "upper": _chars(str.isupper),
    "xdigit": frozenset("0123456789abcdefABCDEF"),
}
"""Character classes of the C locale (isalpha(3)): none has a byte above 127."""


SHORT_CUTS: Final = {
    "*sd*bc*sc*i*": ".{8}sd.{8}bc..sc..i..",
    "*dc*dsc*dp*ic*isc*ip*in*": ".{4}dc..dsc..dp..ic..isc..ip..in..",
}
"""End of most PCI and USB patterns → the format that devices have there (pci_uevent, usb_uevent in the kernel), which
is tried first: fields of fixed width take half the time. Other texts are matched by the pattern."""


@lru_cache(maxsize=4096)
def compiled(pattern: str) -> Fits:
    """Return the test for a bytewise pattern. The results for the last 4,096 patterns are cached."""
    brackets = _Brackets(pattern + _END)
    expression = _regex(pattern, brackets)
    if expression is None:
        return lambda text, at: walk(pattern, text, at, brackets)
    if pattern in SHORT_CUTS:
        expression = f"{SHORT_CUTS[pattern]}|{expression}"
    return re.compile(expression, re.DOTALL).fullmatch


def _regex(pattern: str, brackets: _Brackets) -> str | None:
    """Return the regular expression for a pattern, or None if a bracket may end at more than one place."""
    runs: list[list[str]] = [[]]  # parts before, between and after the `*`: one expression for each byte
    source = pattern + _END
    at = 0
    while at < len(pattern):
        char = source[at]
        at += 1
        if char == "*":
            runs.append([])
        elif char == "?":
            runs[-1].append(".")
        elif char == "[":
            members = dict(brackets.members(at))
            if len(members) > 1:
                return None
            at, accepted = members.popitem() if members else (len(pattern), "")
            runs[-1].append(f"[{re.escape(accepted)}]" if accepted else "(?!)")
        elif char == "\\":
            runs[-1].append(re.escape(source[at]) if at < len(pattern) else "(?!)")
            at += 1
        else:
            runs[-1].append(re.escape(char))
    if len(runs) == 1:
        return "".join(runs[0])
    return "".join([*runs[0], *map(_first_match, runs[1:-1]), ".*", *runs[-1]])


def _first_match(run: list[str]) -> str:
    """Return an expression for any text up to and including the first match of `run`, without backtracking.

    It is an atomic group: possessive quantifiers of Python 3.11.0 to 3.11.4 miss matches (CPython issue 106052).
    """
    return f"(?>.*?{''.join(run)})" if run else ""


def walk(pattern: str, text: str, at: int, brackets: _Brackets | None = None) -> bool:
    """Return whether `text` from `at` on matches: step by step in glibc's order, backtracking to the last `*` only.

    For bytewise patterns without a regular expression; correct for all. brackets: those of the pattern, if known.
    """
    source = pattern + _END
    brackets = brackets or _Brackets(source)
    here = 0
    star = -1  # position in the pattern after the last `*`
    retry = at  # position in the text where the pattern after the last `*` was tried last
    while True:
        if source[here] == "*":
            here += 1
            star, retry = here, at
            continue
        if source[here] == _END and at == len(text):
            return True
        after = _step(source, brackets, here, text[at]) if at < len(text) else -1
        if after >= 0:
            here = after
            at += 1
        elif star < 0 or retry >= len(text):
            return False
        else:
            retry += 1
            here, at = star, retry


def _step(source: str, brackets: _Brackets, here: int, char: str) -> int:
    """Return the position after the element at `here` (not a `*`) if the element matches `char`, else -1."""
    match source[here]:
        case "?":
            return here + 1
        case "[":
            return next((end for end, chars in brackets.members(here + 1).items() if char in chars), -1)
        case "\\":
            return here + 2 if source[here + 1] == char else -1
        case literal:
            return here + 1 if literal == char else -1


_UNCLOSED: Final = -1
"""In place of the end of a bracket: there is no `]`, so its `[` is an ordinary byte."""
_INVALID: Final = -2
"""In place of the end of a bracket: it is invalid, and matches nothing."""


class _Brackets:
    """The brackets of a pattern.

    What was found from a position on is kept, so that a pattern with many unclosed brackets is read in linear time.
    """

    __slots__ = ("_ends", "_members", "_source", "_unclosed")

    def __init__(self, source: str) -> None:
        """`source`: the pattern with _END."""
        self._source = source
        self._members: dict[int, dict[int, str]] = {}
        self._ends: dict[int, int] = {}
        """Position in a bracket that has matched already → its end."""
        self._unclosed = set[int]()
        """Positions of elements from which on the bracket is closed for no byte."""

    def members(self, at: int) -> dict[int, str]:
        """Return, for each position where the bracket that opens before `at` may end, the bytes that it matches.

        Usually there is one position. An empty dict: the bracket matches no byte.
        """
        if at not in self._members:
            self._members[at] = self._read(at)
        return self._members[at]

    def _read(self, at: int) -> dict[int, str]:
        """Read the elements up to the `]`. A byte ends the search at the first element that contains it."""
        is_negated = self._source[at] in "!^"
        left = dict.fromkeys(_BYTES)
        found: list[tuple[str, int]] = []  # bytes of an element, and where the bracket ends for them
        visited: list[tuple[int, bool]] = []  # elements, and whether the bracket is unclosed for their bytes
        here, rest_end = at + is_negated, _UNCLOSED
        while here not in self._unclosed and self._source[here] != _END:
            chars, after, is_valid = self._element(here)
            end = self._end(after) if chars else _UNCLOSED
            new = [char for char in chars if char in left]
            for char in new:
                del left[char]
            found.append(("".join(new), end))
            visited.append((here, end == _UNCLOSED))
            here = after
            if not is_valid or self._source[here] == "]":
                rest_end = here + 1 if is_valid else _INVALID
                break
        if rest_end == _UNCLOSED:
            for place, is_unclosed in reversed(visited):
                if not is_unclosed:
                    break
                self._unclosed.add(place)
        rest = "".join(left)
        members: dict[int, str] = {}
        for chars, end in [(rest, rest_end)] if is_negated else found:
            if chars and end >= 0:
                members[end] = members.get(end, "") + chars
        if any(end == _UNCLOSED and "[" in chars for chars, end in (*found, (rest, rest_end))):
            members[at] = "["
        return members

    def _element(self, here: int) -> tuple[str, int, bool]:
        """Read a class, `[=x=]`, one byte or a range: `x`, `\\x`, `[.x.]`, `x-y`.

        Return its bytes, the position after it, and False if the bracket is invalid for all other bytes.
        """
        source = self._source
        low, at = source[here], here + 1
        least = _END + "]"  # a `-` before one of these makes no range
        if low == "[" and (named := re.compile(_CLASS).match(source, at)):
            name = named[1]
            return "".join(sorted(_CLASSES.get(name, ()))), named.end(), name in _CLASSES
        if low == "[" and (equal := re.compile(_EQUAL).match(source, at)):
            return equal[1], equal.end(), True
        if low == "[" and source[at] == ".":
            low, at = self._symbol(at)
            least = _END
        elif low == "\\":
            low, at = source[at], at + 1
        if low in ("", _END):
            return "", at, False
        if source[at] != "-" or source[at + 1] in least:
            return low, at, source[at : at + 2] != f"-{_END}"
        high, after = source[at + 1], at + 2
        if high == "]":
            return "", at, True
        if high == "[" and source[after] == ".":
            high, after = self._symbol(after)
        elif high == "\\":
            high, after = source[after], after + 1
        if high in ("", _END):
            return "", after, False
        return "".join(map(chr, range(ord(low), ord(high) + 1))), after, True

    def _symbol(self, at: int) -> tuple[str, int]:
        """Return the byte of `[.x.]`, empty if it is invalid, and the position after it. at: its first `.`.

        The C locale has no longer names.
        """
        return (self._source[at + 1], at + 4) if self._source[at + 2 : at + 4] == ".]" else ("", at)

    def _end(self, at: int) -> int:
        """Return the end of a bracket that has matched before `at`; _UNCLOSED or _INVALID if it has none."""
        passed = []
        while (end := self._ends.get(at)) is None:
            passed.append(at)
            if self._source[at] == _END:
                end = _UNCLOSED
            elif self._source[at] == "]":
                end = at + 1
            elif (at := self._skip(at)) < 0:
                end = _INVALID
            if end is not None:
                break
        self._ends.update(dict.fromkeys(passed, end))
        return end

    def _skip(self, at: int) -> int:
        """Return the position after the next element of a bracket that has matched; _INVALID: there is none."""
        source = self._source
        char, at = source[at], at + 1
        if char == "\\":
            return at + 1 if source[at] != _END else _INVALID
        if char != "[":
            return at
        if source[at] == ":":
            named = re.compile(_CLASS).match(source, at)
            return named.end() if named else at
        if source[at] == "=":
            equal = re.compile(_EQUAL).match(source, at)
            return equal.end() if equal else _INVALID
        if source[at] == ".":
            end = source.find(".]", at + 1)
            return end + 2 if end >= 0 else _INVALID
        return at
