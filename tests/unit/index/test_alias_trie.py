"""The alias index: its text, its answers and their order; patterns are read lazily."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest

from kmodd.errors import Where
from kmodd.index import alias_trie, fnmatch
from kmodd.index.alias_trie import AliasTrie
from kmodd.index.text_files import Match
from kmodd.names import ModuleName, underscores

HEADER = "# Aliases extracted from modules themselves.\n"


def trie(*entries: str) -> AliasTrie:
    """Of `PATTERN MODULE` strings."""
    return AliasTrie.from_text(HEADER + "".join(f"alias {entry}\n" for entry in entries), "modules.alias")


def modules(index: AliasTrie, alias: str) -> list[str]:
    return [match.module for match in index.matches(alias)]


def test_a_match_names_pattern_module_and_line() -> None:
    index = trie("pci:v00008086d*sv*sd*bc*sc*i* e1000e", "net-pf-10-* ipv6")
    assert index.matches("pci:v00008086d0sv1sd2bc3sc4i5") == (
        Match(ModuleName("e1000e"), "pci:v00008086d*sv*sd*bc*sc*i*", Where("modules.alias", 2)),
    )
    assert index.matches("net_pf_10_proto") == (Match(ModuleName("ipv6"), "net-pf-10-*", Where("modules.alias", 3)),)
    assert index.matches("net-pf-10-proto") == ()
    assert (len(index), index.problems) == (2, ())


def test_priority_is_the_first_line_of_a_module() -> None:
    index = trie("x:a* first", "x:* second", "x:ab first", "x:?b third", "x:ab second")
    assert modules(index, "x:ab") == ["first", "first", "second", "second", "third"]
    patterns = [match.pattern for match in index.matches("x:ab")]
    assert patterns == ["x:ab", "x:a*", "x:ab", "x:*", "x:?b"]


def test_entries_without_priority_come_in_reverse_of_the_walk() -> None:
    entries = [
        ("x:ab", "a"),
        ("x:*", "b"),
        ("x:?b", "c"),
        ("x:a*", "d"),
        ("x:*b", "e"),
        ("x:[a]b", "f"),
        ("x:ab*", "g"),
    ]
    index = AliasTrie.from_entries(entries, builtin_order=True)
    assert modules(index, "x:ab") == ["a", "g", "d", "f", "c", "b", "e"]
    assert {match.at.line for match in index.matches("x:ab")} == {0}


def test_equal_patterns_of_builtins_stay_in_their_order() -> None:
    index = AliasTrie.from_entries([("x:a", "m1"), ("x:a", "m2"), ("x:*", "m3"), ("x:*", "m4")], builtin_order=True)
    assert modules(index, "x:a") == ["m1", "m2", "m3", "m4"]


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (
            "acpi*:LNXPWRBN:*",
            ["acpi:LNXPWRBN:", "acpi_x:LNXPWRBN:y", "acpi:A:LNXPWRBN:"],
            ["acp:LNXPWRBN:", "acpi:lnxpwrbn:"],
        ),
        (
            "char-major-4-*",
            ["char_major_4_64", "char_major_4_", "char_major_4_:x"],
            ["char_major_40", "char-major-4-1"],
        ),
        ("*:x", ["a:x", ":x", "::x"], ["a:y", "x"]),
        ("*", ["", "a", ":", "é"], []),
        ("a[:]b", ["a:b"], ["a_b", "ab"]),
        ("a\\:b*", ["a:b", "a:bc"], ["a\\:b"]),
        ("x:\\*", ["x:*"], ["x:a", "x:\\*"]),
        ("i2c:a-b", ["i2c:a_b"], ["i2c:a-b"]),
        ("x:[a-c]-d", ["x:b_d"], ["x:-_d", "x:b-d"]),
        ("x:é?", ["x:é!", "x:é\udcff"], ["x:é", "x:éé"]),
        ("x:\udcff*", ["x:\udcff"], ["x:ÿ"]),
        ("virtio:d00000001v*", ["virtio:d00000001v", "virtio:d00000001v*"], ["virtio:d00000001"]),
    ],
)
def test_pattern(pattern: str, yes: list[str], no: list[str]) -> None:
    index = trie(f"{pattern} m", "other:* n")
    assert [alias for alias in yes if modules(index, alias) != ["m"]] == []
    assert [alias for alias in no if modules(index, alias)] == []


def test_many_tails_under_one_stem() -> None:
    """Filed by their rarest piece: pieces that begin with another, overlap, stand twice, are not there at all."""
    tails = [
        "*Cab*",
        "*Cabc*",
        "*Cabcd",
        "*C*",
        "*",
        "?*",
        "[C]*b*",
        "\\C*",
        "*C?b*",
        "Cab*",
        "*Cab*Cab*",
        "*aC*a*",
        "*ba",
    ]
    index = AliasTrie.from_entries([(f"of:N{tail}", f"m{number}") for number, tail in enumerate(tails)])
    assert modules(index, "of:NCabcd") == ["m0", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "m9"]
    assert modules(index, "of:N") == ["m4"]
    assert modules(index, "of:NCabCab") == ["m0", "m3", "m4", "m5", "m6", "m7", "m8", "m9", "m10"]
    assert modules(index, "of:NaCCxba") == ["m3", "m4", "m5", "m8", "m11", "m12"]


def test_near_misses_of_a_fixed_form() -> None:
    index = trie("pci:v00008086d00001533sv*sd*bc*sc*i* igb", "pci:v*d*sv*sd*bc0Csc03i30* xhci_pci")
    assert modules(index, "pci:v00008086d00001533sv0sd0bc0Csc03i30") == ["igb", "xhci_pci"]
    assert modules(index, "pci:vzzdsvsdbc0Csc03i30tail") == ["xhci_pci"]
    assert modules(index, "pci:v00008086d00001533svsdbcsci") == ["igb"]
    assert modules(index, "pci:v1d1sv1sd1bc0bc0Csc03i30") == ["xhci_pci"]
    assert modules(index, "pci:v00008086D00001533sv0sd0bc0Csc03i3") == []
    assert modules(index, "pci:v00008086d00001533sv0sd0bc0Csc03") == []


def test_bad_lines_are_problems_and_the_others_count() -> None:
    text = (
        HEADER
        + "alias x:1 a\nalias x:2\nnonsense\n\n  # note\nalias\nalias x:[3 b\nalias x]: b\nalias\tx: 5  c\nalias x:6 d"
    )
    index = AliasTrie.from_text(text, "modules.alias")
    assert [(problem.at.line, problem.expected) for problem in index.problems] == [
        (3, "expected a module after the pattern"),
        (4, "expected `alias PATTERN MODULE`"),
        (7, "expected `alias PATTERN MODULE`"),
        (8, "expected a pattern whose brackets are closed"),
        (9, "expected a pattern whose brackets are closed"),
        (11, "expected a newline: may be truncated here"),
    ]
    assert str(index.problems[0]) == "modules.alias:3:10: expected a module after the pattern"
    assert list(index.entries()) == [("x:1", "a"), ("x: 5", "c"), ("x:6", "d")]
    assert len(index) == 3
    assert index.matches("x: 5")[0].at.line == 10
    assert not index.matches("x:[3")


@pytest.mark.parametrize("text", ["", "\n", HEADER, "#a\n#b\n\n"])
def test_nothing_in_it(text: str) -> None:
    index = AliasTrie.from_text(text, "f")
    assert (len(index), index.problems, list(index.entries()), index.matches(""), index.matches("a:b")) == (
        0,
        (),
        [],
        (),
        (),
    )


@pytest.mark.parametrize(
    "text",
    [
        "alias a\nalias b c alias\n",
        "alias alias a\nalias b\n",
        "alias a b\n\nalias c d alias\n",
        "alias a b\rc\nx\n",
        "alias a b c d\n",
    ],
)
def test_lines_split_together_read_as_lines_split_one_by_one(text: str) -> None:
    """A comment behind the first line has every line read by itself."""
    together, one_by_one = (AliasTrie.from_text(each, "f") for each in (text, f"{text}#\n"))
    assert list(together.entries()) == list(one_by_one.entries())
    assert together.problems == one_by_one.problems


def test_module_names_are_normalised() -> None:
    assert modules(trie("a:b snd-hda"), "a:b") == ["snd_hda"]


def test_memory_for_unknown_starts_is_bounded() -> None:
    index = trie("acpi*:X:* m", "pci:v* n")
    grown = []
    tracemalloc.start()
    try:
        for begin in range(0, 6000, 3000):
            before, _ = tracemalloc.get_traced_memory()
            for number in range(begin, begin + 3000):
                assert modules(index, f"acpi{number}:X:") == ["m"]
                assert modules(index, f"none{number}:X:") == []
            grown.append(tracemalloc.get_traced_memory()[0] - before)
    finally:
        tracemalloc.stop()
    assert grown[0] > 100_000
    assert grown[1] < 10_000
    assert modules(index, "pci:v1") == ["n"]


def test_long_and_hostile_names() -> None:
    index = trie("x:*a*a*a*a*b m", "x:C*C*C n", *(f"x:*C{number}* c" for number in range(20)))
    assert modules(index, "x:" + "aC" * 20_000) == []
    assert index.matches(underscores("x:'\"$(reboot)`\n" + "a" * 2000)) == ()


def test_a_pattern_is_read_when_a_name_has_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(tail: str) -> Callable[[str, int], object]:
        read.append(tail)
        return fnmatch.uncompiled(tail)

    monkeypatch.setattr(alias_trie, "uncompiled", counted)
    index = trie("pci:v1*x*y a", "usb:v1*x?z b")
    assert read == []
    assert modules(index, "pci:v1-x-y") == ["a"]
    assert read == ["*x*y"]
