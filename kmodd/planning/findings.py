"""A mistake in the configuration, as `kmodd lint` and the daemon's log show it: `Finding`."""

from __future__ import annotations

from kmodd.dataclass import dataclass
from kmodd.errors import Problem, Where

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Severity = Literal["error", "warning"]
    """error: what the line states does not happen, or something else does. warning: it may be meant so."""
else:
    Severity = str

CODES = (
    "alias", "blacklist", "blank", "boot", "builtin", "byte-code", "command", "comment", "continued", "cr-lf", "dash",
    "foreign", "nul", "not-read", "overridden", "prefix", "quote", "softdep", "surplus", "syntax", "unknown-module",
    "unknown-parameter", "unreadable",
)  # fmt: skip
"""Codes of findings; docs/LINT.md explains each."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A mistake and its place."""

    at: Where
    severity: Severity
    code: str
    """One of CODES."""
    text: str
    shown: str = ""
    """The line and a caret, each after an LF (`Problem.shown`)."""
    shipped: bool = False
    """Whether the file is as its package has it: the mistake is not the administrator's."""
    boot_name: str = ""
    """Name in the boot list that loads nothing, which the daemon also records when it boots; empty: another mistake."""

    def __str__(self) -> str:
        """Return `FILE:LINE: error: TEXT [CODE]`, without LINE for a whole file; then a bad line with a caret."""
        return f"{self.at}: {self.severity}: {self.text} [{self.code}]{self.shown}"

    @property
    def message(self) -> str:
        """The text for the daemon's log: `FILE:LINE: TEXT [CODE]`."""
        return f"{self.at}: {self.text} [{self.code}]"


def error(at: Where, code: str, text: str) -> Finding:
    """Return a finding of severity `error`."""
    return Finding(at, "error", code, text)


def warning(at: Where, code: str, text: str) -> Finding:
    """Return a finding of severity `warning`."""
    return Finding(at, "warning", code, text)


def of_problem(problem: Problem) -> Finding:
    """Return the finding of an invalid line, or of a part of a line that has no effect."""
    return Finding(problem.at, "error", problem.code, problem.expected, problem.shown())
