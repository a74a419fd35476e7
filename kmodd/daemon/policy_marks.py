"""What of the policy outlives the daemon: files below /run that the kernel's helper and the next daemon read."""

from __future__ import annotations

import os

from kmodd.config.policy_d import Rule, parse_rule
from kmodd.engine.events import PolicyMarks
from kmodd.errors import SyntaxProblem, Where
from kmodd.host.atomic_files import write_aside
from kmodd.host.config_files import FLAGS_DIR
from kmodd.host.regular_files import read_file
from kmodd.text import decode, encode

CLOSED = "/run/kmodd/closed"
"""While this exists, the kernel's helper refuses what the daemon does not answer."""
SEALED = "/run/kmodd/sealed"
"""The seal lasts until the next boot."""
BOOTED = "/run/kmodd/booted"
"""All devices of this boot were answered."""
RULES = "/run/kmodd/rules"
"""The last rules of policy.d without a mistake: `rules`, then file, line and text of each, all ended by NUL."""
_HEAD = "rules"


def read_marks() -> PolicyMarks:
    """What an earlier daemon of this boot left."""
    sealed, closed, booted = map(os.path.exists, (SEALED, CLOSED, BOOTED))
    return PolicyMarks(sealed, closed, booted, _rules_of(read_file(RULES)))


def write_marks(marks: PolicyMarks, spent: str = "") -> list[str]:
    """Create and remove the files, and the flag that is `spent`. Returns a message for each that could not be."""
    failed = []
    if spent:
        try:
            os.unlink(f"{FLAGS_DIR}/{spent}")
        except OSError as error:
            failed.append(f"Failed to remove {FLAGS_DIR}/{spent}: {error.strerror}; a rule allows further loads")
    for path, is_set in ((SEALED, marks.sealed), (CLOSED, marks.closed), (BOOTED, marks.booted)):
        try:
            if is_set and not os.path.exists(path):  # what exists may be a FIFO, whose opening waits
                with open(path, "x"):
                    pass
            elif not is_set and os.path.lexists(path):
                os.unlink(path)
        except OSError as error:
            action = "create" if is_set else "remove"
            failed.append(f"Failed to {action} {path}: {error.strerror}; the next daemon does not know of it")
    if marks.rules is not None:
        words = (word for rule in marks.rules for word in (rule.at.file, str(rule.at.line), rule.text))
        failed += _keep(encode("".join(f"{word}\0" for word in (_HEAD, *words))))
    return failed


def _keep(data: bytes) -> list[str]:
    """Replace the file of rules if it has another content. Returns a message if that failed."""
    if read_file(RULES) == data:
        return []
    try:
        write_aside(RULES, data, 0o600)
    except OSError as error:
        return [f"Failed to write {RULES}: {error.strerror}; a daemon that starts does not know the last valid rules"]
    return []


def _rules_of(data: bytes | None) -> tuple[Rule, ...] | None:
    """Return the rules that `write_marks` wrote; None if there are none, or the file is damaged."""
    head, *words = decode(data or b"").split("\0")
    if head != _HEAD or words[-1:] != [""]:
        return None
    try:
        places = zip(words[:-1:3], words[1:-1:3], words[2:-1:3], strict=True)
        return tuple(parse_rule(text, Where(file, int(line))) for file, line, text in places)
    except (ValueError, SyntaxProblem):
        return None
