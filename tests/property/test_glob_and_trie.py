"""Generated patterns: `glob` equals the C library's fnmatch(3); the trie equals trying every pattern with that."""

from __future__ import annotations

import ctypes

from hypothesis import example, given, settings
from hypothesis import strategies as st

from kmodd import glob

_libc = ctypes.CDLL(None)
_libc.newlocale.restype = _libc.uselocale.restype = ctypes.c_void_p
_libc.newlocale.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p]
_libc.uselocale.argtypes = [ctypes.c_void_p]
_LC_CTYPE_AND_COLLATE = 1 << 0 | 1 << 3
_C_LOCALE = _libc.newlocale(_LC_CTYPE_AND_COLLATE, b"C", None)


def fnmatch(pattern: str, text: str) -> bool:
    """The C library's answer in the C locale (this thread alone changes to it: Python itself starts in a UTF-8 one)."""
    before = _libc.uselocale(_C_LOCALE)
    try:
        return _libc.fnmatch(pattern.encode("utf-8", "surrogateescape"), text.encode("utf-8", "surrogateescape"), 0) == 0
    finally:
        _libc.uselocale(before)


HOSTILE = [
    "*", "*", "?", "[", "]", "!", "^", "-", "\\", "a", "b", "c", "z", ".", "/", ":", "=", "[:", ":]", "[=", "=]", "[.", ".]",
    "[:alpha:]", "[:punct:]", "[:cntrl:]", "[:foo:]", "[=a=]", "[.a.]", "[.-.]", "[a-c]", "[!a]", "[^b-]", "é", "\udcff", " ", "\n", "\x7f",
]  # fmt: skip
patterns = st.lists(st.sampled_from(HOSTILE), max_size=12).map("".join)
texts = st.lists(st.sampled_from([*"ab cz.[]!^-\\/:=\n\x7f", "é", "\udcff", "ÿ"]), max_size=8).map("".join)


@settings(max_examples=3000, deadline=None)
@given(patterns, texts)
@example("[a[:]x", "ax")
@example("[[abc", "[[abc")
@example("[!a", "[!a")
@example("[\\", "[\\")
@example("*\\", "x")
@example("[a-\\", "[a-\\")
@example("[é]", "\udcc3")
def test_glob_equals_the_c_library(pattern: str, text: str) -> None:
    assert glob.matches(pattern, text) == fnmatch(pattern, text)
