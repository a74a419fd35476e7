"""What can go wrong, as values and as exceptions.

A bad *line* is a `Problem`: it is collected, shown, and the other lines count.
What stops a whole operation is a `KmoddError`; its text is a complete message without the program's name.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Never


def assert_never(value: Never) -> Never:
    """typing's, which costs as much to import as a third of what a tool may take."""
    raise AssertionError(f"expected code to be unreachable, but got: {value!r}")


class KmoddError(Exception):
    """Base of every error that a program shows as one line and no traceback."""


class NoTree(KmoddError):
    """There is no module tree (or no index in it) for the wanted kernel release."""


class ParseError(KmoddError):
    """A file, datagram or structure that is not of the expected format; nothing of it may be used."""


class SyntaxProblem(Exception):
    """A configuration line that does not parse: the index of the wrong character, and what was expected there."""

    def __init__(self, index: int, expected: str, deprecated: bool = False) -> None:
        super().__init__(expected)
        self.index = index
        self.expected = expected
        self.deprecated = deprecated


class UnmatchedBracket(KmoddError):
    """A name with `[` that is not closed or `]` that was not opened: kmod refuses it as a name and as a pattern."""


@dataclass(frozen=True, slots=True)
class Where:
    """A place in a text file, as messages and journal fields name it."""

    file: str
    line: int
    """First line is 1. Of a line continued with a backslash, the first. 0: the file has no lines."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Problem:
    """One line (or one file, line 0) that could not be used, and what was expected there."""

    at: Where
    column: int
    """First column is 1; 0 where the whole line is meant."""
    source: str
    """The line as it stands in the file; empty where a whole file is meant."""
    expected: str

    def __str__(self) -> str:
        """One line: `file:line:column: what was expected`."""
        column = f":{self.column}" if self.at.line and self.column else ""
        return f"{self.at}{column}: {self.expected}"

    def with_caret(self) -> str:
        """The message, the source line and a caret below the column, for terminals."""
        return f"{self}{self.shown()}"

    def shown(self) -> str:
        """The source line and the caret, each on a line of its own with the LF before it; nothing for a whole file."""
        if not self.source:
            return ""
        caret = "\n  " + " " * (self.column - 1) + "^" if self.column else ""
        return f"\n  {self.source.expandtabs(1)}{caret}"
