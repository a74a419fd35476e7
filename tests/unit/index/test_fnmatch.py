"""Corner cases of fnmatch(3), one row each; tests/property compares with the C library."""

import re
import time

import pytest

from kmodd.index import fnmatch, fnmatch_regex

ROWS = [
    # pattern, text, matches
    ("", "", True),
    ("", "a", False),
    ("*", "", True),
    ("a*", "a/.b", True),
    ("*", ".hidden/x", True),
    ("?", "/", True),
    ("?", "", False),
    ("**?", "", False),
    ("*?b", "ab", True),
    ("[a-c]", "b", True),
    ("[c-a]", "b", False),
    ("[!a-c]", "b", False),
    ("[^a-c]", "d", True),
    ("[]a]", "]", True),
    ("[!]a]", "]", False),
    ("[a-]", "-", True),
    ("[[:digit:]x]", "7", True),
    ("[[:digit:]x]", "x", True),
    ("[[:alpha:]]", "é", False),
    ("[[:nonsense:]]", "n", False),
    ("[[=a=]b]", "a", True),
    ("[[.-.]]", "-", True),
    ("[[.a.]-c]", "b", True),
    ("[[.ab.]]", "a", False),
    ("[\\]]", "]", True),
    ("[\\a-\\c]", "b", True),
    ("[a", "[a", True),
    ("[a", "a", False),
    ("x[", "x[", True),
    ("*[", "ab[", True),
    ("[[abc", "[[abc", True),
    ("[a[:]x", "ax", True),
    ("\\*", "*", True),
    ("\\*", "x", False),
    ("\\\\", "\\", True),
    ("a\\", "a", False),
    ("a\\", "a\\", False),
    ("*\\", "\\", False),
    ("[\\", "[\\", False),
    ("é", "é", True),
    ("?", "é", False),  # two bytes
    ("??", "é", True),
    ("?", "\udcff", True),  # one byte that was not UTF-8
    ("[\udc80-\udcff]", "\udcc3", True),
    ("?", "\x80", False),  # U+0080 is two bytes
    ("*x", "a\nx", True),
    ("a.c", "abc", False),
    ("[[:-[::]", ";", True),
    ("[[:-[::]", "[", False),
    ("[[:-[::]", "[;", True),
    ("pci:v*d*sv*", "pci:vdsv", True),
    ("*ab*ab", "xab", False),
    ("*ab*ab", "xabab", True),
    ("*aab", "aaab", True),
    ("*aab*", "aaaab", True),
]


@pytest.mark.parametrize(("pattern", "text", "expected"), ROWS)
def test_each_row_matches_as_fnmatch(pattern: str, text: str, expected: bool) -> None:
    assert fnmatch.matches(pattern, text) is expected
    assert bool(fnmatch.uncompiled(fnmatch.bytewise(pattern))(fnmatch.bytewise(text), 0)) is expected


@pytest.mark.parametrize(("pattern", "text", "expected"), ROWS)
def test_the_walk_agrees(pattern: str, text: str, expected: bool) -> None:
    assert fnmatch_regex.walk(fnmatch.bytewise(pattern), fnmatch.bytewise(text), 0) is expected


@pytest.mark.parametrize(
    ("pattern", "text"), [("a*c", "xxabc"), ("[ab]c", "xxac"), ("abc", "xxabc"), ("[[:-[::]", "xx;")]
)
def test_matching_may_begin_inside_the_text(pattern: str, text: str) -> None:
    assert fnmatch_regex.compiled(pattern)(text, 2)
    assert fnmatch.uncompiled(pattern)(text, 2)
    assert not fnmatch_regex.compiled(pattern)(text, 1)
    assert not fnmatch.uncompiled(pattern)(text, 1)


@pytest.mark.parametrize(
    "pattern", ["*a*a*a*a*a*b", "*[ab]*?a*[!c]a*aa*b", "a*aaaa*aaaaa*aaaaaa*b", "*\\a*\\a*b", "*a" * 50 + "b"]
)
def test_a_hostile_pattern_ends(pattern: str) -> None:
    began = time.thread_time()
    assert not fnmatch.matches(pattern, "a" * 20_000)
    assert time.thread_time() - began < 2


def test_half_a_surrogate_pair_is_accepted() -> None:
    assert fnmatch.matches("*", "\ud800")
    assert not fnmatch.matches("a", "\ud800\udcff")


def test_literal() -> None:
    assert fnmatch.is_literal("pci:v-_.")
    for special in "*?[\\":
        assert not fnmatch.is_literal(f"a{special}b")
    assert fnmatch.literal_start("ab?c*") == "ab"
    assert fnmatch.literal_start("ab\\*") == "ab"
    assert fnmatch.literal_start("abc") == "abc"
    assert fnmatch.literal_pieces("*sd?bc*x[yz]w") == {"sd", "bc", "x"}


def test_the_cache_is_bounded() -> None:
    assert fnmatch_regex.compiled.cache_info().maxsize == 4096


@pytest.mark.parametrize("pattern", fnmatch_regex.SHORT_CUTS)
def test_a_short_cut_matches_no_more_than_its_pattern(pattern: str) -> None:
    """It has the pattern's literal pieces in their order; the pattern itself matches the rest."""
    short_cut = fnmatch_regex.SHORT_CUTS[pattern]
    assert re.sub(r"\.(\{\d+\})?", "*", short_cut).replace("**", "*") == pattern
    typical = re.sub(r"\.\{(\d+)\}", lambda match: "7" * int(match[1]), short_cut).replace(".", "0")
    assert re.fullmatch(short_cut, typical)
    fits = fnmatch_regex.compiled(pattern)
    assert fits(typical, 0)
    assert fits(f"longer{typical}", 0)
    assert fits(f"{typical}er", 0)
    assert not fits(typical.replace("c", "x"), 0)
    assert not fits(typical[:-6], 0)
