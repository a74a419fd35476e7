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
    expression = _regex(pattern)
    if expression is None:
        return lambda text, at: walk(pattern, text, at)
    if pattern in SHORT_CUTS:
        expression = f"{SHORT_CUTS[pattern]}|{expression}"
    return re.compile(expression, re.DOTALL).fullmatch


def _regex(pattern: str) -> str | None:
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
            members = _members(source, at)
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


def walk(pattern: str, text: str, at: int) -> bool:
    """Return whether `text` from `at` on matches: step by step in glibc's order, backtracking to the last `*` only.

    For bytewise patterns without a regular expression; correct for all.
    """
    source = pattern + _END
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
        after = _step(source, here, text[at]) if at < len(text) else -1
        if after >= 0:
            here = after
            at += 1
        elif star < 0 or retry >= len(text):
            return False
        else:
            retry += 1
            here, at = star, retry


def _step(source: str, here: int, char: str) -> int:
    """Return the position after the element at `here` (not a `*`) if the element matches `char`, else -1."""
    match source[here]:
        case "?":
            return here + 1
        case "[":
            return _bracket(source, here + 1, char)
        case "\\":
            return here + 2 if source[here + 1] == char else -1
        case literal:
            return here + 1 if literal == char else -1


@lru_cache(maxsize=256)
def _cached_members(source: str, at: int) -> dict[int, str]:
    members: dict[int, str] = {}
    for char in _BYTES:
        after = _bracket(source, at, char)
        if after >= 0:
            members[after] = members.get(after, "") + char
    return members


def _members(source: str, at: int) -> dict[int, str]:
    """Return, for each position where the bracket that opens before `at` may end, the bytes that it matches.

    Usually there is one position. An empty dict: the bracket matches no byte.
    """
    return dict(_cached_members(source, at))


class _Unclosed(Exception):
    """The bracket is not closed: its `[` is an ordinary byte."""


class _Malformed(Exception):
    """The bracket is invalid: the pattern matches nothing."""


def _bracket(source: str, at: int, char: str) -> int:
    """Return the position after the bracket that opens before `at` if the bracket matches `char`, else -1."""
    negated = source[at] in "!^"
    try:
        found, after = _find(source, at + negated, char)
        if found:
            after = _skip(source, after)
    except _Unclosed:
        return at if char == "[" else -1
    except _Malformed:
        return -1
    return after if found != negated else -1


def _find(source: str, at: int, char: str) -> tuple[bool, int]:
    """Read members up to one that contains `char`, or to the `]`. Return whether one does, and the position after it.

    Raises _Unclosed or _Malformed.
    """
    next_char = source[at]
    at += 1
    while True:
        low = next_char
        if low == _END:
            raise _Unclosed
        if low == "[" and (named := re.compile(_CLASS).match(source, at)):
            if named[1] not in _CLASSES:
                raise _Malformed
            if char in _CLASSES[named[1]]:
                return True, named.end()
            next_char, at = source[named.end()], named.end() + 1
        elif low == "[" and (equal := re.compile(_EQUAL).match(source, at)):
            if char == equal[1]:
                return True, equal.end()
            next_char, at = source[equal.end()], equal.end() + 1
        else:
            found, next_char, at = _range(source, at, low, char)
            if found:
                return True, at
        if next_char == "]":
            return False, at


def _range(source: str, at: int, low: str, char: str) -> tuple[bool, str, int]:
    """Read one byte or a range: `x`, `\\x`, `[.x.]`, `x-y`. Raises _Malformed.

    at: position after `low`, the first byte. Return whether it contains `char`, the next byte if not, and the position
    after the bytes read.
    """
    if low == "[" and source[at] == ".":
        low, at = _symbol(source, at)
        is_range = source[at] == "-" and source[at + 1] != _END
    else:
        if low == "\\":
            low = source[at]
            at += 1
            if low == _END:
                raise _Malformed
        is_range = source[at] == "-" and source[at + 1] not in (_END, "]")
    if not is_range and char == low:
        return True, "", at
    next_char = source[at]
    at += 1
    if next_char != "-" or source[at] == "]":
        return False, next_char, at
    high = source[at]
    at += 1
    if high == "[" and source[at] == ".":
        high, at = _symbol(source, at)
    elif high == "\\":
        high = source[at]
        at += 1
    if high == _END:
        raise _Malformed
    if low <= char <= high:
        return True, "", at
    return False, source[at], at + 1


def _symbol(source: str, at: int) -> tuple[str, int]:
    """Return the byte of `[.x.]` and the position after it. at: its first `.`. The C locale has no longer names."""
    end = source.find(".]", at + 1)
    if end != at + 2:
        raise _Malformed
    return source[at + 1], end + 2


def _skip(source: str, at: int) -> int:
    """Return the position after the `]` of a bracket that matched before `at`. Raises _Unclosed or _Malformed."""
    while (char := source[at]) != "]":
        at += 1
        if char == _END:
            raise _Unclosed
        if char == "\\":
            if source[at] == _END:
                raise _Malformed
            at += 1
        elif char == "[" and source[at] == ":":
            named = re.compile(_CLASS).match(source, at)
            at = named.end() if named else at
        elif char == "[" and source[at] == "=":
            equal = re.compile(_EQUAL).match(source, at)
            if not equal:
                raise _Malformed
            at = equal.end()
        elif char == "[" and source[at] == ".":
            end = source.find(".]", at + 1)
            if end < 0:
                raise _Malformed
            at = end + 2
    return at + 1
