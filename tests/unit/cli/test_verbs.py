"""What all verbs have in common: help, usage, the version, unknown words."""

from __future__ import annotations

import importlib
import re

import pytest

from kmodd.cli import features, policy, profile
from kmodd.cli.__main__ import TOOLS, VERBS
from kmodd.cli.verb import Given, Option, Verb
from kmodd.text import printable
from tests import program
from tests.rootfs import Said

SHOWN = [verb for verb, text in VERBS.items() if text]


def verb_of(name: str) -> Verb:
    """The declaration of a verb."""
    found = importlib.import_module(f"kmodd.cli.{name.replace('-', '_')}").VERB
    assert isinstance(found, Verb)
    return found


EVERY = [*map(verb_of, SHOWN), *policy.SUBVERBS.values(), *profile.SUBVERBS.values()]


@pytest.mark.parametrize("name", SHOWN)
def test_every_verb_is_declared_under_its_name(name: str) -> None:
    assert verb_of(name).name == name


@pytest.mark.parametrize("verb", EVERY, ids=lambda verb: verb.name)
def test_help_has_one_style(verb: Verb, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Usage, text, options, exit status, examples that begin with the verb; within 80 columns, and within 40."""
    monkeypatch.setenv("COLUMNS", "200")
    assert verb.parse(["--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: kmodd {verb.name} ")
    assert re.findall(r"^(\S.*):$", text, re.MULTILINE) == [
        "options",
        *["exit status"] * bool(verb.status),
        *["examples"] * bool(verb.examples),
    ]
    assert verb.examples
    assert all(line.startswith(verb.name.partition(" ")[0]) for line, _ in verb.examples)
    examples = [f"  kmodd {line}" for line, _ in verb.examples]
    for limit in (80, 40):
        monkeypatch.setenv("COLUMNS", str(limit))
        lines = verb.help().splitlines()[1:]
        assert [line for line in lines if len(line) > limit and line not in examples and " " in line.strip()] == []
    sentence = verb.text.split("\n\n")[0]
    assert sentence[0].isupper()
    assert sentence.endswith(".")


def test_help_of_a_verb_is_that_of_the_verb() -> None:
    for name in ("explain", "modprobe"):
        said = program.run([name, "--help"])
        assert (said.status, b"usage" in said.out.lower()) == (0, True)
        assert program.run(["help", name]) == said
    text = program.run(["help"]).out.decode()
    assert all(f"\n  {name} " in text for name in (*SHOWN, *TOOLS))
    assert program.run([]) == Said(b"", b"kmodd: VERB is missing; see `kmodd help`\n", 2)
    for words, why in (
        (["profile"], "make or test is missing"),
        (["profile", "mak"], "unknown word 'mak'; expected make or test"),
        (["deny"], "MODULE is missing"),
    ):
        assert program.run(words) == Said(b"", f"kmodd {words[0]}: {why}; see `kmodd {words[0]} --help`\n".encode(), 2)


@pytest.mark.parametrize(
    ("word", "said"),
    [("stauts", "; did you mean 'status'?"), ("explian", "; did you mean 'explain'?"), ("xyzzy", "; see `kmodd help`")],
)
def test_an_unknown_verb_is_one_line(word: str, said: str) -> None:
    for words in ([word], ["help", word]):
        assert program.run(words) == Said(b"", f"kmodd: unknown verb {word!r}{said}\n".encode(), 2)


def test_the_version_has_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = program.run(["--version"]).out.decode().splitlines()
    assert re.fullmatch(r"kmodd \d+\.\d+\.\d+ \(Python 3\.\d+\.\d+\)", first)
    assert "+ZLIB" in second.split()
    monkeypatch.setattr("kmodd.cli.features.find_spec", lambda name: None)
    assert set(re.findall(r"[+-]", features.version().splitlines()[1])) == {"-"}


VERB = Verb("x y", "Do it.", (Option("-n, --number", "a number", "N"), Option("--flag", "a flag")), "WHAT…")


def test_a_command_line_is_parsed() -> None:
    given = VERB.parse(["a", "-n1", "--num", "2", "--flag", "--", "-b"])
    assert isinstance(given, Given)
    assert (given.operands, given.values) == (["a", "-b"], {"number": ["1", "2"], "flag": [""]})
    assert ("flag" in given, given.get("number"), given.get("other", "-")) == (True, "2", "-")


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["--frob"], "unrecognized option '--frob'"),
        (["-n"], "option requires an argument -- 'n'"),
        ([], "WHAT is missing"),
        (["a", "b", "c"], "unexpected operand 'c'"),
    ],
)
def test_wrong_usage_is_one_line(argv: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert VERB.parse(argv, 1, 2) == 2
    assert capsys.readouterr() == ("", f"kmodd x y: {why}; see `kmodd x y --help`\n")


def test_printable() -> None:
    assert printable("a\x1b[1m\n\u202eb\x9b") == "a\\x1b[1m\\n\\u202eb\\x9b"
    assert printable("Ä →\udcff\\") == "Ä →\udcff\\", "the control"
