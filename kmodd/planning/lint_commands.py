"""Find install lines that run themselves again."""

from __future__ import annotations

import re

from kmodd.errors import UnmatchedBracket
from kmodd.index import fnmatch
from kmodd.names import underscores
from kmodd.planning.findings import Finding, error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from kmodd.index.catalog import Snapshot

_COMMAND = re.compile(
    r"(?:^|[;&|({!\n]|\b(?:then|else|do|if|while|exec)\b)\s*(?:\S*/)?modprobe((?:[ \t]+[^\s;&|)}]+)+)"
)
"""A call of modprobe in a shell command, with its words."""
_WITH_VALUE = ("C", "d", "S", "w")
"""Letters of options that take a value."""
_LONG_WITH_VALUE = ("--config", "--dirname", "--set-version", "--wait")
_OTHER_ACTIONS = ("i", "r", "n", "R", "D", "c", "V", "h")
"""Letters of options with which modprobe runs no install command of the module that is named."""
_LONG_OTHER_ACTIONS = (
    "--ignore-install", "--remove", "--remove-holders", "--dry-run", "--show", "--resolve-alias", "--show-depends",
    "--showconfig", "--show-config", "--version", "--help", "--show-modversions", "--dump-modversions",
)  # fmt: skip


def check_endless(snapshot: Snapshot) -> Iterator[Finding]:
    """Find install lines whose command runs modprobe for the same module without --ignore-install.

    modprobe then runs the line again, without end (modprobe.d(5), `install`).
    """
    for command in snapshot.config.installs:
        for name in _loaded_by(command.command.partition(" #")[0]):
            if _matches(command.pattern, name):
                text = f"install command of {command.pattern} runs modprobe {name}, which runs the command again"
                yield error(command.at, "command", f"{text}; add --ignore-install")
                break


def _loaded_by(command: str) -> Iterator[str]:
    """Yield the names for which a shell command runs modprobe so that it runs their install commands."""
    for match in _COMMAND.finditer(command):
        words = iter(match[1].split())
        operands: list[str] = []
        takes_all = False
        for word in words:
            letters = word[1:] if word.startswith("-") and not word.startswith("--") else ""
            if word in _LONG_OTHER_ACTIONS or any(letter in _OTHER_ACTIONS for letter in letters):
                operands = []
                break
            takes_all = takes_all or word == "--all" or "a" in letters
            if word in _LONG_WITH_VALUE or letters.endswith(_WITH_VALUE):
                next(words, "")
            elif not word.startswith("-"):
                operands.append(word.strip("\"'"))
        yield from operands if takes_all else operands[:1]


def _matches(pattern: str, name: str) -> bool:
    """Return whether the pattern of an install line matches a name, as modprobe looks it up."""
    try:
        return fnmatch.matches(pattern, underscores(name))
    except UnmatchedBracket:
        return False
