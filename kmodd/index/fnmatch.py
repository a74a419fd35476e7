"""fnmatch(3) of glibc with flags 0 in the C locale, as used by kmod to match aliases.

Python's `fnmatch` differs for `\\`, `[^` and `[[:x:]]`. The rules of glibc (posix/fnmatch_loop.c of 2.36, Debian 12):

- `*` matches any bytes, `?` one byte, `[...]` one byte of a set, `[!...]` and `[^...]` one byte not in it;
  `/` and a leading `.` are ordinary bytes.
- A set has ranges by byte value, classes such as `[:alpha:]`, `[=x=]` and `[.x.]`; a leading `]` is a member.
- `\\` escapes the next byte, in a set too; a `\\` at the end of the pattern matches nothing.
- `[` without `]` is an ordinary `[`.

glibc matches bytes, Python characters. The *bytewise* form of a text has one character for each byte (U+0000 to
U+00FF); an ASCII text is its own bytewise form, so conversions are rare.

This file handles patterns of literal text and `*`, which are most; `fnmatch_regex` handles the others.
"""

from __future__ import annotations

from kmodd.text import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kmodd.index.fnmatch_regex import Fits


def matches(pattern: str, text: str) -> bool:
    """Return whether `fnmatch(pattern, text, 0) == 0`, for any pattern and text. Raises nothing."""
    pattern, text = bytewise(pattern), bytewise(text)
    return pattern == text if is_literal(pattern) else bool(uncompiled(pattern)(text, 0))


class Patterns:
    """A sequence of patterns to match together: as by `matches`, but plain names are looked up in a dict."""

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
        """Return the indexes of the patterns that match `text`, ascending. Raises nothing."""
        text = bytewise(text)
        found = self._literal.get(text, ())
        if not self._wild:
            return found
        wild = [number for number, start, fits in self._wild if text.startswith(start) and fits(text, 0)]
        return sorted([*found, *wild]) if wild else found


def is_literal(pattern: str) -> bool:
    """Return whether the pattern has no wildcard, bracket or backslash, and so only matches itself."""
    return "*" not in pattern and not _has_specials(pattern)


def literal_start(pattern: str) -> str:
    """Return the part before the first wildcard, bracket or backslash: every matching text begins with it."""
    start = pattern.partition("*")[0]
    if _has_specials(start):
        start = start.partition("?")[0].partition("[")[0].partition("\\")[0]
    return start


def literal_pieces(pattern: str) -> set[str]:
    """Return literal parts that every matching text contains; parts after a bracket or backslash are left out."""
    plain = pattern.partition("[")[0].partition("\\")[0]
    return set(plain.replace("?", "*").split("*")) - {""}


def _has_specials(pattern: str) -> bool:
    """Return whether the pattern has special characters other than `*`."""
    return "?" in pattern or "[" in pattern or "\\" in pattern


def bytewise(text: str) -> str:
    """Return a text with one character for each byte of `text` in its file.

    text: decoded by `kmodd.text.decode`, or any other text.
    """
    if text.isascii():
        return text
    try:
        return encode(text).decode("latin-1")
    except UnicodeEncodeError:  # an unpaired UTF-16 surrogate, as from JSON: no file has it, so any bytes are correct
        return text.encode("utf-8", "surrogatepass").decode("latin-1")


def uncompiled(pattern: str) -> Fits:
    """Return a test for a bytewise pattern that is fast to build: without `re` if `*` is its only special character.

    The test is built a hundred times as fast as that of `compiled`, and takes twice as long for a comparison.
    """
    if not _has_specials(pattern):
        return _Pieces(pattern).fits
    # imported here: `re` takes up to a third of a tool's time, and few patterns need it
    from kmodd.index.fnmatch_regex import compiled

    return compiled(pattern)


class _Pieces:
    """A pattern of literal pieces separated by `*`."""

    __slots__ = ("first", "last", "middle")

    def __init__(self, pattern: str) -> None:
        self.first, *rest = pattern.split("*")
        self.last = rest.pop() if rest else None
        self.middle = tuple(filter(None, rest))

    def fits(self, text: str, at: int) -> bool:
        """Implement Fits: match each piece at its first occurrence, the last one at the end of the text."""
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
