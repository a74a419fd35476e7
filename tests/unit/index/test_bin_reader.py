"""The .bin indexes: exact and wildcard look-up, dump, both layouts, damage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmodd.errors import ParseError, UnmatchedBracket
from kmodd.index import fnmatch
from kmodd.index.bin_reader import HEADER, BinIndex, Value, build
from kmodd.names import underscores

KEYS = st.text("abc*?[]-\\:", max_size=8)
ENTRIES = st.lists(st.tuples(KEYS, st.text("xyz", max_size=3), st.integers(0, 3)), max_size=25)
LAYOUTS = pytest.mark.parametrize("preorder", [False, True], ids=["kmod-33", "kmod-34"])


def expected(entries: list[tuple[str, str, int]]) -> list[tuple[str, tuple[Value, ...]]]:
    """Keys in byte order; values by priority, the later of equals first (depmod's add_value)."""
    keys = sorted({key for key, _, _ in entries}, key=str.encode)
    return [
        (
            key,
            tuple(sorted((Value(p, v) for k, v, p in reversed(entries) if k == key), key=lambda value: value.priority)),
        )
        for key in keys
    ]


def has_paired_brackets(key: str) -> bool:
    """Whether depmod writes this key: it refuses others with "Unmatched bracket" (kmod's alias_normalize)."""
    try:
        underscores(key)
    except UnmatchedBracket:
        return False
    return True


@LAYOUTS
@given(entries=ENTRIES)
def test_what_is_written_is_read(preorder: bool, entries: list[tuple[str, str, int]]) -> None:
    index = BinIndex(build(entries, preorder=preorder), "x.bin")
    assert list(index.entries()) == expected(entries)
    for key, values in expected(entries):
        assert index.get(key) == values[0].text
    assert index.get("zzz") is None


@LAYOUTS
@given(entries=ENTRIES, query=st.text("abc:-*", max_size=8))
def test_wildcard_finds_what_fnmatch_finds(preorder: bool, entries: list[tuple[str, str, int]], query: str) -> None:
    """With plain queries and patterns that depmod writes, without a backslash, where kmod's walk is literal."""
    index = BinIndex(build(entries, preorder=preorder), "x.bin")
    found = index.wildcard(query)
    assert [hit.value.priority for hit in found] == sorted(hit.value.priority for hit in found)
    if set(query) & set("*?["):
        return
    plain = [key for key, _ in index.entries() if "\\" not in key and has_paired_brackets(key)]
    wanted = {key for key in plain if fnmatch.matches(key, query)}
    assert {hit.pattern for hit in found if hit.pattern in plain} == wanted


@LAYOUTS
def test_a_pattern_with_an_unmatched_bracket_matches_nothing(preorder: bool) -> None:
    index = BinIndex(build([("[]:]", "unmatched", 0), ("[:]", "matched", 0)], preorder=preorder), "x.bin")
    assert [hit.value.text for hit in index.wildcard(":")] == ["matched"]


def test_the_last_found_of_equal_priority_comes_first() -> None:
    index = BinIndex(build([("a*", "one", 0), ("a?", "two", 0), ("ab", "three", 0)], preorder=False), "x.bin")
    assert [hit.value.text for hit in index.wildcard("ab")] == ["three", "two", "one"]
    assert [hit.pattern for hit in index.wildcard("ab")] == ["ab", "a?", "a*"]


def test_a_query_with_a_wildcard_finds_its_own_pattern_twice() -> None:
    """kmod goes down a `*` child as a pattern and, for a `*` in the query, as a byte."""
    index = BinIndex(build([("ab", "x", 0), ("a*", "m", 0)], preorder=False), "x.bin")
    assert [hit.value.text for hit in index.wildcard("a*")] == ["m", "m"]


def test_layouts_have_one_size_and_other_bytes() -> None:
    entries = [("ask", "1", 0), ("ate", "2", 0), ("on", "3", 0), ("once", "4", 0), ("one", "5", 0)]
    after, before = build(entries, preorder=False), build(entries, preorder=True)
    assert len(after) == len(before)
    assert after != before
    assert before[8:12] == (0x20000000 | HEADER).to_bytes(4, "big"), "the root comes first"
    assert list(BinIndex(after, "").entries()) == list(BinIndex(before, "").entries())


@LAYOUTS
def test_empty_index_is_its_header(preorder: bool) -> None:
    data = build([], preorder=preorder)
    assert data.hex() == "b007f457000200010000000c"
    index = BinIndex(data, "x.bin")
    assert list(index.entries()) == []
    assert index.wildcard("a") == ()
    assert index.get("") is None


def test_key_must_be_seven_bits() -> None:
    with pytest.raises(ParseError, match="7-bit"):
        build([("é", "x", 0)], preorder=False)


@LAYOUTS
def test_a_chain_of_prefixes_is_read_without_recursion(preorder: bool) -> None:
    """The chain is longer than Python's limit of 1,000 calls."""
    entries = [("a" * n, str(n), 0) for n in range(1, 1200)]
    assert list(BinIndex(build(entries, preorder=preorder), "").entries())[-1][0] == "a" * 1199


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", r"x\.bin: offset 0: only 0 bytes"),
        (b"\0" * 12, "offset 0: magic 0, expected b007f457"),
        (bytes.fromhex("b007f457000300010000000c"), "offset 4: major version 3, expected 2"),
    ],
)
def test_a_bad_header_is_reported_with_its_offset(data: bytes, words: str) -> None:
    with pytest.raises(ParseError, match=words):
        BinIndex(data, "x.bin")


def test_root_outside_of_the_file() -> None:
    index = BinIndex(bytes.fromhex("b007f4570002000180ffffff"), "x.bin")
    for ask in (lambda: index.get("a"), lambda: index.wildcard("a"), lambda: list(index.entries())):
        with pytest.raises(ParseError, match=r"x\.bin: offset 16777215: "):
            ask()


def test_nodes_in_a_circle_end() -> None:
    """A node whose only child is itself."""
    data = bytes.fromhex("b007f457000200012000000c") + b"**" + bytes.fromhex("2000000c")
    index = BinIndex(data, "x.bin")
    with pytest.raises(ParseError, match="cycle"):
        list(index.entries())
    with pytest.raises(ParseError, match="cycle"):
        index.wildcard("aaa")
    assert index.get("*" * 100) is None


def test_a_truncated_index_is_an_error() -> None:
    data = build([("ask", "1", 0), ("ate", "2", 1), ("one", "3", 0)], preorder=True)
    for length in range(len(data)):
        with pytest.raises(ParseError):
            list(BinIndex(data[:length], "x.bin").entries())
