"""The manual pages have the verbs, options, settings, conditions and methods that there are, and no others."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import pytest

from kmodd.cli import complete, policy, profile
from kmodd.cli.__main__ import VERBS
from kmodd.cli.verb import Verb

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted((ROOT / "docs/man").glob("*.scd"))
DATE = re.search(r"^MAN_DATE = (\d+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)


def page(name: str) -> str:
    """The source of a page, its escapes removed."""
    return (ROOT / f"docs/man/{name}.scd").read_text().replace("\\", "")


def declared() -> list[Verb]:
    shown = [name for name, text in VERBS.items() if text]
    verbs: list[Verb] = [import_module(f"kmodd.cli.{name.replace('-', '_')}").VERB for name in shown]
    return [*verbs, *policy.SUBVERBS.values(), *profile.SUBVERBS.values()]


def options_in(section: str) -> list[str]:
    """The options that a section describes, each as `-t, --timeout SEC`."""
    return [line.replace("*", "").replace("_", "") for line in re.findall(r"^\*-.*", section, re.MULTILINE)]


def test_each_verb_has_a_section_with_its_options() -> None:
    """As has its help, and completion."""
    text = page("kmodd.8").partition("# VERBS\n")[2].partition("\n# EXIT STATUS")[0]
    sections = dict(re.findall(r"^## kmodd ([^\n]*)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    verbs = {f"{verb.name} {verb.operands}".rstrip(): verb for verb in declared()}
    assert set(sections) == set(verbs)
    for heading, verb in verbs.items():
        options = [f"{option.names} {option.value}".rstrip() for option in verb.options]
        assert options_in(sections[heading]) == options, verb.name
        offered = [word for option in complete.options_of(*verb.name.split()) for word in option.words]
        assert [word for option in verb.options for word in option.words] == offered[: -len(("-h", "--help"))]
        assert all(f"\nkmodd {line}\n" in sections[heading] for line, _ in verb.examples)


def test_a_missing_option_would_be_noticed() -> None:
    """The control."""
    assert options_in("*-t*, *--timeout* _SEC_\n\tSeconds.\n\n*--json*\n\tJSON.\n") == ["-t, --timeout SEC", "--json"]


@pytest.mark.parametrize(
    ("name", "source", "pattern"),
    [
        ("kmodd.conf.5", "docs/CONFIGURATION.md", r"^\| `([A-Z]\w+=)` \|"),
        ("kmodd-policy.5", "docs/POLICY.md", r"^\| `([a-z]+=)` \|"),
    ],
)
def test_settings_and_conditions_are_those_of_the_tables(name: str, source: str, pattern: str) -> None:
    known = re.findall(pattern, (ROOT / source).read_text(), re.MULTILINE)
    assert len(known) > 10
    assert re.findall(r"^\*(\w+=)\*$", page(name), re.MULTILINE) == known


def test_the_methods_are_those_of_the_interface() -> None:
    interface = (ROOT / "kmodd/host/io.kmodd.varlink").read_text()
    for kind, pattern in (("method", r"^\*(\w+)\*\("), ("error", r"^\*(\w+)\*$")):
        known = re.findall(rf"^{kind} (\w+)", interface, re.MULTILINE)
        assert len(known) > 4
        assert re.findall(pattern, page("io.kmodd.7"), re.MULTILINE) == known


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_shipped_page_is_the_one_that_scdoc_makes(path: Path) -> None:
    """`make man` writes it. The first line has scdoc's version; another one has another layout, but the same words."""
    assert DATE is not None
    shipped = (ROOT / "docs/man/built" / path.stem).read_text().splitlines()
    scdoc = shutil.which("scdoc")
    assert scdoc, "make test installs it"
    environment = os.environ | {"SOURCE_DATE_EPOCH": DATE[1]}
    made = subprocess.run([scdoc], input=path.read_text(), env=environment, capture_output=True, text=True, check=True)
    lines = made.stdout.splitlines()
    if lines[0] == shipped[0]:
        assert lines == shipped
    else:
        layout = r"^\.(?:IP|PD|RS|ie|el)\b.*|^\\h'.*|^\.\w+|\\f.|\W"
        words = [re.sub(layout, "", line) for line in (*lines[1:], *shipped[1:])]
        half = len(lines) - 1
        assert "".join(words[:half]) == "".join(words[half:])
