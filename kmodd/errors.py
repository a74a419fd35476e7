"""Problems and exceptions that all folders share.

An invalid *line* is a `Problem`: it is collected and reported, and the other lines are used.
A `KmoddError` ends a whole operation; its text is a complete message without the program's name.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Never


def assert_never(value: Never) -> Never:
    """Do what typing.assert_never does. Importing typing takes a third of a tool's time budget."""
    raise AssertionError(f"expected code to be unreachable, but got: {value!r}")


class KmoddError(Exception):
    """Base of all errors that programs print as one line, without a traceback."""


class NoTree(KmoddError):
    """No module tree for the requested kernel release, or no index in the tree."""


class ParseError(KmoddError):
    """A file, datagram or structure in another format than expected; none of its content may be used."""


class SyntaxProblem(Exception):
    """A syntax error in a configuration line; the parser of the file turns it into a `Problem`."""

    def __init__(self, index: int, expected: str, deprecated: bool = False) -> None:
        """Take the position and text of the error.

        index: 0-based index of the wrong character. expected: what was expected there. deprecated: the directive is
        known, but no longer read.
        """
        super().__init__(expected)
        self.index = index
        self.expected = expected
        self.deprecated = deprecated


class UnmatchedBracket(KmoddError):
    """A name with `[` without `]`, or the reverse; kmod rejects it as a name and as a pattern."""


@dataclass(frozen=True, slots=True)
class Where:
    """A position in a text file, as shown in messages and journal fields."""

    file: str
    line: int
    """1-based; the first of lines joined by backslashes. 0: the whole file, or a file without lines."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


_VISIBLE = dict.fromkeys([*range(32), 127], "?")
"""For lines that are shown: a control character could change the terminal, and would shift the caret."""


@dataclass(frozen=True, slots=True)
class Problem:
    """An invalid line, or an invalid file (line 0), and what was expected."""

    at: Where
    column: int
    """1-based; 0: the whole line."""
    source: str
    """The line as in the file; empty for a whole file."""
    expected: str
    code: str = "syntax"
    """What kind of mistake it is, as `kmodd lint` prints it (docs/LINT.md)."""

    def __str__(self) -> str:
        """Return the message in one line: `file:line:column: what was expected`."""
        column = f":{self.column}" if self.at.line and self.column else ""
        return f"{self.at}{column}: {self.expected}"

    def with_caret(self) -> str:
        """Return the message, the source line and a caret below the column, for terminals."""
        return f"{self}{self.shown()}"

    def shown(self) -> str:
        """Return the source line and the caret, each after an LF; an empty text for a whole file."""
        if not self.source:
            return ""
        caret = "\n  " + " " * (self.column - 1) + "^" if self.column else ""
        return f"\n  {self.source.expandtabs(1).translate(_VISIBLE)}{caret}"
