"""fnmatch(3) of glibc with flags 0 in the C locale, exactly: what kmod compares aliases with.

Python's own `fnmatch` differs on `\\`, `[^`, `[[:x:]]`. Here, as in glibc (posix/fnmatch_loop.c of 2.36, Debian 12):

- `*` any bytes, `?` one byte, `[...]` one byte out of a set, `[!...]` and `[^...]` one byte not in it;
  `/` and a leading `.` are bytes like others.
- In a set: ranges by byte value, `[:alpha:]` and its kind, `[=x=]`, `[.x.]`; a `]` that comes first is a member.
- `\\` takes the next byte literally, in a set too; a `\\` at the very end matches nothing.
- `[` without its `]` is an ordinary `[`.

glibc matches bytes, Python has characters. The *bytewise* view of a text has one character for each byte (U+0000
to U+00FF) and is the text itself where that is ASCII, so nearly always nothing is converted.

Here is what literal text and `*` need, which is nearly all; the rest is in `fnmatch_regex`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kmodd.index.fnmatch_regex import Fits


def matches(pattern: str, text: str) -> bool:
    """Whether `fnmatch(pattern, text, 0) == 0`. Any pattern and any text will do; nothing is raised."""
    pattern, text = bytewise(pattern), bytewise(text)
    return pattern == text if is_literal(pattern) else bool(uncompiled(pattern)(text, 0))


class Patterns:
    """Some patterns, and which of them match a text: as `matches` with each, but plain names are found by a dict."""

    __slots__ = ("_literal", "_wild")

    def __init__(self, patterns: Sequence[str]) -> None:
        self._literal: dict[str, list[int]] = {}
        self._wild: list[tuple[int, str, Fits]] = []
        for number, spelled in enumerate(patterns):
            pattern = bytewise(spelled)
            if is_literal(pattern):
                self._literal.setdefault(pattern, []).append(number)
            else:
                self._wild.append((number, literal_start(pattern), uncompiled(pattern)))

    def fitting(self, text: str) -> Sequence[int]:
        """The numbers of those that match, in their order. Any text will do; nothing is raised."""
        text = bytewise(text)
        found = self._literal.get(text, ())
        if not self._wild:
            return found
        wild = [number for number, start, fits in self._wild if text.startswith(start) and fits(text, 0)]
        return sorted([*found, *wild]) if wild else found


def is_literal(pattern: str) -> bool:
    """Whether the pattern has no wildcard, bracket or backslash, so that it matches itself and nothing else."""
    return "*" not in pattern and not _beyond_star(pattern)


def literal_start(pattern: str) -> str:
    """What precedes the first wildcard, bracket or backslash: every text that matches begins with it."""
    start = pattern.partition("*")[0]
    if _beyond_star(start):
        start = start.partition("?")[0].partition("[")[0].partition("\\")[0]
    return start


def literal_pieces(pattern: str) -> set[str]:
    """Literal parts that are in every text that matches. What follows a bracket or a backslash is left alone."""
    sure = pattern.partition("[")[0].partition("\\")[0]
    return set(sure.replace("?", "*").split("*")) - {""}


def _beyond_star(pattern: str) -> bool:
    """Whether anything but `*` is special in the pattern."""
    return "?" in pattern or "[" in pattern or "\\" in pattern


def bytewise(text: str) -> str:
    """One character for each byte of the text as it stood in its file: UTF-8, surrogate escapes for other bytes."""
    if text.isascii():
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("latin-1")
    except UnicodeEncodeError:  # half a UTF-16 pair, as JSON can carry it: no file has such bytes, so any will do
        return text.encode("utf-8", "surrogatepass").decode("latin-1")


def uncompiled(pattern: str) -> Fits:
    """The same test, made a hundred times faster and twice as slow in use, where `*` is all that is special."""
    if not _beyond_star(pattern):
        return _Pieces(pattern).fits
    from kmodd.index.fnmatch_regex import (
        compiled,  # only here: `re` is as much as a third of a tool, and few patterns need it
    )

    return compiled(pattern)


class _Pieces:
    """Literal pieces with `*` between them."""

    __slots__ = ("first", "last", "middle")

    def __init__(self, pattern: str) -> None:
        self.first, *rest = pattern.split("*")
        self.last = rest.pop() if rest else None
        self.middle = tuple(filter(None, rest))

    def fits(self, text: str, at: int) -> bool:
        """As Fits. Each piece is taken where it is found first, the last one at the end."""
        if self.last is None:
            return text[at:] == self.first
        if self.first:
            if not text.startswith(self.first, at):
                return False
            at += len(self.first)
        for piece in self.middle:
            at = text.find(piece, at)
            if at < 0:
                return False
            at += len(piece)
        return text.endswith(self.last, at)
