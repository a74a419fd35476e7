"""The file format of policy.d: meaning and errors of a line; a printed rule is read as the same rule."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kmodd.config.modprobe_d import ConfFile
from kmodd.config.policy_d import (
    KEYS,
    MAX_UID,
    OF_PROCESSES,
    VERDICTS,
    WORDS,
    Condition,
    Key,
    Parsed,
    Rule,
    parse,
    uid_range,
)
from kmodd.errors import Where
from kmodd.host.config_files import read_flags, read_rules
from kmodd.planning.request import ORIGINS

FILE = "/etc/kmodd/policy.d/10-x.conf"


def parsed(text: str) -> Parsed:
    return parse([ConfFile(FILE, text)])


def test_a_rule() -> None:
    found = parsed("# a comment\n\n  deny request=net-pf-*,algif-*  origin=request uid=!0  # why\r\n")
    assert found.problems == ()
    (rule,) = found.rules
    assert rule == Rule(
        Where(FILE, 3),
        "deny request=net-pf-*,algif-*  origin=request uid=!0",
        "deny",
        (
            Condition("request", ("net-pf-*", "algif-*")),
            Condition("origin", ("request",)),
            Condition("uid", (), ("0",)),
        ),
    )
    assert str(rule) == "deny request=net-pf-*,algif-* origin=request uid=!0"


def test_words_in_quotes() -> None:
    (rule,) = parsed('allow request="of:N*T(null)Ca,b c",!"!x","#" exe=/a#b # a comment').rules
    assert rule.conditions == (
        Condition("request", ("of:N*T(null)Ca,b c", "#"), ("!x",)),
        Condition("exe", ("/a#b",)),
    )


def test_star_stands_for_everything() -> None:
    (rule,) = parsed("deny *").rules
    assert (rule.conditions, str(rule)) == ((), "deny *")


def test_the_origins_are_those_of_requests() -> None:
    assert WORDS["origin"] == ORIGINS


@pytest.mark.parametrize(
    ("line", "column", "expected"),
    [
        ("refuse *", 1, "expected allow, deny or log"),
        ("  denyorigin=request", 3, "expected allow, deny or log"),
        ("deny", 5, "expected a condition"),
        ("deny   # origin=request", 5, "expected a condition"),
        ("deny requst=x", 6, "unknown condition 'requst'"),
        ("deny request", 6, "expected KEY=VALUE"),
        ("deny * uid=0", 6, "expected KEY=VALUE"),
        ("deny request=", 14, "expected a value"),
        ("deny request=a,,b", 16, "expected a value"),
        ("deny request=a, b", 16, "expected a value"),
        ("deny request=!", 15, "expected a value"),
        ('deny request=""', 14, "expected a value"),
        ('deny request="a', 14, 'expected a second "'),
        ('deny request="a"b', 17, "expected a comma"),
        ('deny request=a"b"', 15, "expected a comma"),
        ("deny request=a[b", 14, "matching brackets"),
        ("deny module=x,a]b", 15, "matching brackets"),
        ("deny origin=udev", 13, "expected uevent, coldplug"),
        ("deny phase=boot,later", 17, "expected boot, running or sealed"),
        ("deny container=true", 16, "expected yes or no"),
        ("deny uid=root", 10, "expected a user ID"),
        ("deny uid=5-4", 10, "expected a user ID"),
        ("deny uid=4294967295", 10, "expected a user ID"),
        ("deny uid=0 uid=1", 12, "uid= is given twice"),
        ("deny flag=../x", 11, "expected the name of a file in /run/kmodd/flags"),
        ("allow until=1h", 13, "expected seconds since boot, suspend included (CLOCK_BOOTTIME)"),
        ("deny origin=uevent uid=0", 20, "uid= needs origin=request or operator"),
        ("deny exe=/x origin=boot,uevent", 13, "exe= needs origin=request or operator"),
        ("deny module=a\0", 14, "expected a rule without NUL bytes"),
        ("# a comment\0", 12, "expected a rule without NUL bytes"),
        ("deny origin=boot,!boot", 6, "expected an origin that is not excluded"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(line: str, column: int, expected: str) -> None:
    """An error names file, line and column. Valid lines around it are read."""
    found = parsed(f"allow *\n{line}\nlog *\n")
    (problem,) = found.problems
    assert str(problem).startswith(f"{FILE}:2:{column}: ")
    assert expected in problem.expected
    assert problem.with_caret().splitlines()[-1].index("^") == column + 1
    assert [rule.verdict for rule in found.rules] == ["allow", "log"]


@pytest.mark.parametrize(
    ("text", "both"),
    [
        ("0", (0, 0)),
        ("1-9", (1, 9)),
        ("1000-", (1000, MAX_UID)),
        ("", None),
        ("-5", None),
        ("1-2-3", None),
        ("٣", None),
    ],
)
def test_users(text: str, both: tuple[int, int] | None) -> None:
    assert uid_range(text) == both


# ── drawn ────────────────────────────────────────────────────────────────────────────────────────────────────────────

PIECES = [*VERDICTS, *(f"{key}=" for key in KEYS), *'*,!"#= \t\n\r[]\\é\0\udcff', "uid=1-", "request", "yes", "origin"]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=30).map("".join)


@given(TEXTS)
@example('deny request="\n')
def test_parse_never_raises(text: str) -> None:
    found = parsed(text)
    lines = text.split("\n")
    for problem in found.problems:
        assert problem.source == lines[problem.at.line - 1]
        assert 1 <= problem.column <= len(problem.source) + 1
    for rule in found.rules:
        assert rule.text in lines[rule.at.line - 1]
        again = parsed(str(rule))
        assert ([(r.verdict, r.conditions) for r in again.rules], again.problems) == (
            [(rule.verdict, rule.conditions)],
            (),
        )


def _values(key: Key) -> st.SearchStrategy[str]:
    if key in WORDS:
        return st.sampled_from(WORDS[key])
    if key == "uid":
        return st.integers(0, MAX_UID).map(str) | st.integers(0, MAX_UID).map("{}-".format)
    if key == "until":
        return st.integers(0, 10**10 - 1).map(str)
    if key == "flag":
        return st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]*", fullmatch=True)
    return st.text(st.characters(blacklist_characters='"\n\0[]'), min_size=1)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    keys = draw(st.lists(st.sampled_from(KEYS), unique=True))
    if set(keys) & set(OF_PROCESSES):
        keys = [key for key in keys if key != "origin"]  # which of these go together has its own tests
    conditions = []
    for key in keys:
        wanted = draw(st.lists(_values(key), max_size=3))
        unwanted = draw(st.lists(_values(key), max_size=3)) if key != "origin" else []
        if wanted or unwanted:
            conditions.append(Condition(key, tuple(wanted), tuple(unwanted)))
    return Rule(Where("", 1), "", draw(st.sampled_from(VERDICTS)), tuple(conditions))


@given(rules())
def test_a_printed_rule_is_the_rule_again(rule: Rule) -> None:
    found = parsed(str(rule))
    assert found.problems == ()
    assert [(again.verdict, again.conditions) for again in found.rules] == [(rule.verdict, rule.conditions)]


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def put(root: Path, path: str, text: str) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def texts(root: Path) -> list[str]:
    return [rule.text for rule in read_rules(str(root)).rules]


def test_folders_order_and_masking(tmp_path: Path) -> None:
    """The usual directories: by name across all of them, a higher one masks a lower one."""
    put(tmp_path, "usr/lib/kmodd/policy.d/10-a.conf", "deny module=lib10\n")
    put(tmp_path, "usr/lib/kmodd/policy.d/30-c.conf", "deny module=lib30\n")
    put(tmp_path, "usr/local/lib/kmodd/policy.d/20-b.conf", "deny module=local20\n")
    put(tmp_path, "run/kmodd/policy.d/30-c.conf", "deny module=run30\n")
    put(tmp_path, "etc/kmodd/policy.d/40-d.conf", "deny module=etc40\n")
    put(tmp_path, "etc/kmodd/policy.d/50-e.txt", "deny module=never\n")
    assert texts(tmp_path) == [f"deny module={name}" for name in ("lib10", "local20", "run30", "etc40")]
    put(tmp_path, "etc/kmodd/policy.d/10-a.conf", "")
    (tmp_path / "etc/kmodd/policy.d/30-c.conf").symlink_to("/dev/null")
    assert texts(tmp_path) == [f"deny module={name}" for name in ("local20", "etc40")]
    assert read_rules(str(tmp_path)).problems == ()


def test_a_link_to_a_preset_stays_below_the_root(tmp_path: Path) -> None:
    put(tmp_path, "usr/share/kmodd/policy.d/x.conf", "deny module=x\n")
    put(tmp_path, "etc/kmodd/policy.d/a.conf", "")
    (tmp_path / "etc/kmodd/policy.d/x.conf").symlink_to("/usr/share/kmodd/policy.d/x.conf")
    (rule,) = read_rules(str(tmp_path)).rules
    assert str(rule.at) == "/etc/kmodd/policy.d/x.conf:1"


@pytest.mark.parametrize("kind", ["dangling", "folder"])
def test_a_file_that_cannot_be_read_is_a_mistake(kind: str, tmp_path: Path) -> None:
    """Without it more might be allowed: so it is never passed over in silence."""
    path = tmp_path / "etc/kmodd/policy.d/x.conf"
    path.parent.mkdir(parents=True)
    if kind == "dangling":
        path.symlink_to("/usr/share/kmodd/policy.d/gone.conf")
    else:
        path.mkdir()
    (problem,) = read_rules(str(tmp_path)).problems
    assert problem.at == Where("/etc/kmodd/policy.d/x.conf", 0)


def test_flags(tmp_path: Path) -> None:
    """A flag is a file in a folder that only its owner may write."""
    assert read_flags(str(tmp_path)) == frozenset()
    put(tmp_path, "run/kmodd/flags/locked", "")
    folder = tmp_path / "run/kmodd/flags"
    (folder / "sub").mkdir()
    (folder / "link").symlink_to("locked")
    folder.chmod(0o755)
    assert read_flags(str(tmp_path)) == {"locked"}
    folder.chmod(0o777)
    assert read_flags(str(tmp_path)) == frozenset()
