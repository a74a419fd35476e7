"""What `kmodd deny` and `kmodd allow` write."""

from __future__ import annotations

import re

import pytest

from kmodd.config.policy_d import Condition
from kmodd.planning.local_rules import (
    HEADER,
    MODPROBE_END,
    MODPROBE_HEADER,
    Change,
    denied_to_all,
    forbid,
    is_module_name,
    modprobe_lines,
    once_flag,
    permit,
    pruned,
)

A = Change("a", why="CVE-2026-1")
WWW = Change("a", (Condition("uid", ("33",)),))
UNIT = Change("a", (Condition("unit", ("x.service",)),))
DENY = "deny   module=a  # by kmodd deny: CVE-2026-1\n"


def test_the_first_line_brings_the_header_and_the_last_takes_it_away() -> None:
    assert forbid("", A) == HEADER + DENY
    assert permit(HEADER + DENY, Change("a")) == ""


def test_lines_of_others_stay_behind_the_own_ones_byte_by_byte() -> None:
    """Also one that says the same without the mark, one that is no rule, and one without an end."""
    text = "\n# mine\nallow module=a  # by hand\ndeny module=a\n  deny\tmodule=\nlast"
    assert forbid(text, A) == DENY + text
    assert permit(DENY + text, Change("a")) == text
    assert permit(text, Change("a")) == text


@pytest.mark.parametrize("change", [A, WWW, UNIT])
def test_a_second_call_changes_nothing(change: Change) -> None:
    once = forbid("", change)
    assert forbid(once, change) == once
    assert forbid(once, Change(change.module, change.whom, "another reason")) == once
    once = permit("deny module=*\n", change, needs_rule=True)
    assert permit(once, change, needs_rule=True) == once


def test_a_call_that_is_repeated_behind_another_one_changes_nothing() -> None:
    """Two users; which line is first does not matter. Control: an exception between them does."""
    both = forbid(forbid("", WWW), UNIT)
    assert forbid(both, WWW) == both
    excepted = permit(both, Change("a", (Condition("uid", ("7",)),)), needs_rule=True)
    assert forbid(excepted, WWW).removeprefix(HEADER).startswith("deny   module=a uid=33  #")
    assert forbid(excepted, WWW).count("uid=33") == 1


def test_a_deny_for_all_replaces_what_is_said_for_some() -> None:
    text = permit(forbid(forbid("", WWW), UNIT), WWW, needs_rule=True)
    assert text.count("\n") == HEADER.count("\n") + 2
    assert forbid(text, A) == HEADER + DENY
    assert forbid(forbid(text, A), Change("b")).endswith(DENY)


def test_an_exception_comes_first_and_keeps_the_deny_for_all() -> None:
    text = permit(HEADER + DENY, WWW, needs_rule=True)
    assert text == HEADER + "allow  module=a uid=33  # by kmodd allow\n" + DENY
    assert denied_to_all(text) == ("a",)
    assert permit(text, Change("a")) == ""
    assert forbid(text, WWW) == HEADER + "deny   module=a uid=33  # by kmodd deny\n" + DENY


def test_a_rule_for_a_time_is_gone_when_it_is_over() -> None:
    limited = Change("a", (), "", (Condition("until", ("100",)),))
    once = Change("b", (), "", (Condition("flag", ("once-b",)),))
    text = permit(permit("", limited, needs_rule=True), once, needs_rule=True)
    assert pruned(text, 99.0, frozenset({"once-b"})) == text
    assert "module=a" not in pruned(text, 100.0, frozenset({"once-b"}))
    assert "module=b" not in pruned(text, 99.0, frozenset())
    assert pruned("allow module=a until=1\n", 5.0, frozenset()) == "allow module=a until=1\n"


def test_modprobe_d_has_lines_for_what_is_denied_to_all() -> None:
    text = forbid(forbid(forbid("", Change("b")), A), Change("c", WWW.whom))
    lines = modprobe_lines("", denied_to_all(text))
    own = "".join(f"blacklist {name}\ninstall {name} /bin/false\nsoftdep {name} pre:\n" for name in "ab")
    assert lines == MODPROBE_HEADER + own + MODPROBE_END
    assert modprobe_lines(lines, denied_to_all(text)) == lines
    assert modprobe_lines(lines, ()) == ""
    foreign = "options x y=1\ninstall a /bin/true"
    assert modprobe_lines(lines + foreign, ["a"]).endswith(f"softdep a pre:\n{MODPROBE_END}{foreign}")
    assert modprobe_lines(lines + foreign, ()) == foreign


def test_lines_of_others_in_modprobe_d_stay_though_they_look_like_own_ones() -> None:
    foreign = "blacklist floppy\ninstall floppy /bin/false\n"
    written = modprobe_lines(foreign, ["a"])
    own = "blacklist a\ninstall a /bin/false\nsoftdep a pre:\n"
    assert written == f"{MODPROBE_HEADER}{own}{MODPROBE_END}{foreign}"
    assert modprobe_lines(f"# first\n{written}", ()) == f"# first\n{foreign}"
    assert modprobe_lines(written.replace("\n", "\r\n"), ()) == foreign.replace("\n", "\r\n")


@pytest.mark.parametrize("condition", ["until=!5", "flag=!a", "flag=a", "uid=33"])
def test_an_own_line_that_was_edited_stays_while_it_can_hold(condition: str) -> None:
    text = f"allow  module=a {condition}  # by kmodd allow\n"
    assert pruned(text, 9.0, frozenset()) == text


@pytest.mark.parametrize("names", ["a,b", "!a", "a*"])
def test_an_own_line_that_names_more_than_one_module_is_of_others(names: str) -> None:
    text = f"deny   module={names}  # by kmodd deny\n"
    assert denied_to_all(text) == ()
    assert permit(text, Change("a")) == text


@pytest.mark.parametrize(
    ("text", "is_name"),
    [("algif_aead", True), ("snd-hda-intel", True), ("a*", False), ("a b", False), ("", False), ("a,b", False)],
)
def test_a_pattern_is_no_name(text: str, is_name: bool) -> None:
    assert is_module_name(text) == is_name


def test_units_that_differ_in_special_characters_have_flags_of_their_own() -> None:
    names = [
        "a:b.service",
        "a@b.service",
        "a_b.service",
        "a-b.service",
        "x" * 250 + ".service",
        "x" * 249 + "y.service",
    ]
    flags = [once_flag("m", name) for name in names]
    assert len({*flags}) == len(names)
    assert all(re.fullmatch(r"once-m-[A-Za-z0-9_-]{1,80}", flag) for flag in flags)
    assert (once_flag("m"), once_flag("m", "33")) == ("once-m", "once-m-33")
