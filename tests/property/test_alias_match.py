"""Generated patterns: `fnmatch` equals the C library's fnmatch(3); the trie equals trying every pattern with that."""

from __future__ import annotations

import ctypes
import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kmodd.index import alias_trie, fnmatch, fnmatch_regex
from kmodd.index.alias_trie import AliasTrie
from kmodd.names import underscores

_libc = ctypes.CDLL(None)
_libc.newlocale.restype = _libc.uselocale.restype = ctypes.c_void_p
_libc.newlocale.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p]
_libc.uselocale.argtypes = [ctypes.c_void_p]
_LC_CTYPE_AND_COLLATE = 1 << 0 | 1 << 3
_C_LOCALE = _libc.newlocale(_LC_CTYPE_AND_COLLATE, b"C", None)


def libc_fnmatch(pattern: str, text: str) -> bool:
    """The C library's answer in the C locale (this thread alone changes to it: Python itself starts in a UTF-8 one)."""
    before = _libc.uselocale(_C_LOCALE)
    try:
        return bool(_libc.fnmatch(os.fsencode(pattern), os.fsencode(text), 0) == 0)
    finally:
        _libc.uselocale(before)


HOSTILE = [
    *"**?[]!^-\\abcz./:= \n\x7f", "é", "\udcff", "[:", ":]", "[=", "=]", "[.", ".]", "[a-c]", "[!a]", "[^b-]",
    "[:alpha:]", "[:punct:]", "[:cntrl:]", "[:foo:]", "[=a=]", "[.a.]", "[.-.]",
]  # fmt: skip
patterns = st.lists(st.sampled_from(HOSTILE), max_size=12).map("".join)
texts = st.lists(st.sampled_from([*"ab cz.[]!^-\\/:=\n\x7f", "é", "\udcff", "ÿ"]), max_size=8).map("".join)


@settings(max_examples=1000, deadline=None)
@given(patterns, texts)
@example("[a[:]x", "ax")
@example("[[abc", "[[abc")
@example("[!a", "[!a")
@example("[\\", "[\\")
@example("*\\", "x")
@example("[a-\\", "[a-\\")
@example("[é]", "\udcc3")
def test_fnmatch_equals_the_c_library(pattern: str, text: str) -> None:
    assert fnmatch.matches(pattern, text) == libc_fnmatch(pattern, text)


@given(patterns, texts, st.integers(0, 3))
def test_every_matcher_agrees(pattern: str, text: str, at: int) -> None:
    view, rest = fnmatch.bytewise(text), fnmatch.bytewise(text)[at:]
    expected = libc_fnmatch(pattern, rest.encode("latin-1").decode("utf-8", "surrogateescape"))
    source = fnmatch.bytewise(pattern)
    assert bool(fnmatch_regex.compiled(source)(view, min(at, len(view)))) == expected
    assert bool(fnmatch.uncompiled(source)(view, min(at, len(view)))) == expected
    assert fnmatch_regex.walk(source, view, min(at, len(view))) == expected


PARTS = ["*", "*", "?", "[a-c]", "[!x]", "[^a]", "\\", "\\*", "a", "b", "ab", "x", "sd", "bc0", "s", ":", "-", "_", "é"]
STARTS = ["", "pci:v", "pci:v1d", "pci", "usb:", "acpi*:", "net-pf-", "p*:", ":", "x\\:"]
entries = st.lists(
    st.tuples(
        st.builds(
            lambda start, parts, end: start + "".join(parts) + end,
            st.sampled_from(STARTS),
            st.lists(st.sampled_from(PARTS), max_size=6),
            st.sampled_from(["", "*", "bc0*", "*sd*bc0*"]),
        ),
        st.sampled_from(["m1", "m2", "m3", "m4"]),
    ),
    max_size=40,
)
names = st.builds(
    lambda start, parts: start + "".join(parts),
    st.sampled_from(["", "pci:v", "pci:v1d", "pci", "usb:", "acpi:", "acpiX:", "net_pf_", ":", "x:", "x\\:"]),
    st.lists(
        st.sampled_from(["a", "b", "c", "x", "sd", "bc0", "s", "d", ":", "_", "*", "\\", "é", "\udcff", "1"]),
        max_size=7,
    ),
)


@settings(max_examples=300, deadline=None)
@given(entries, st.lists(names, min_size=1, max_size=8), st.booleans())
def test_trie_equals_trying_every_pattern(table: list[tuple[str, str]], asked: list[str], as_text: bool) -> None:
    if as_text:
        trie = AliasTrie.from_text("".join(f"alias {pattern or '*'} {module}\n" for pattern, module in table), "f")
        table = [(pattern or "*", module) for pattern, module in table]
    else:
        trie = AliasTrie.from_entries(table)
    rank = {module: number for number, module in enumerate(dict.fromkeys(module for _, module in table))}
    for name in asked:
        expected = [(pattern, module) for pattern, module in table if libc_fnmatch(underscores(pattern), name)]
        answer = trie.matches(name)
        assert sorted((match.pattern, match.module) for match in answer) == sorted(expected)
        assert [rank[match.module] for match in answer] == sorted(rank[module] for _, module in expected)
        assert trie.matches(name) == answer


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.builds(
                str.__add__, st.text("ab", max_size=5), st.sampled_from(["", "*", "*b", "b*", "?", "[a]b", "*:*"])
            ),
            st.sampled_from(["m1", "m2", "m3"]),
        ),
        min_size=10,
        max_size=40,
    ),
    st.lists(st.text("ab:", max_size=7), min_size=8, max_size=20),
    st.integers(1, 4),
    st.booleans(),
)
def test_the_length_of_the_start_changes_no_answer(
    table: list[tuple[str, str]], asked: list[str], short: int, builtin_order: bool
) -> None:
    """With a short start most names are longer than it: stems beyond it, cut ones too, decide."""
    usual = AliasTrie.from_entries(table, builtin_order=builtin_order)
    expected = [usual.matches(name) for name in asked]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alias_trie, "START", short)
        trie = AliasTrie.from_entries(table, builtin_order=builtin_order)
        for name, answer in zip(asked, expected, strict=True):
            assert trie.matches(name) == answer
            assert sorted(match.pattern for match in answer) == sorted(
                pattern for pattern, _ in table if libc_fnmatch(pattern, name)
            )
