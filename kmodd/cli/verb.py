"""One verb of kmodd: a declaration from which its options are parsed, and its help and completion are made."""

from __future__ import annotations

import os
import sys

from kmodd.cli.options import OptionError, Options
from kmodd.dataclass import dataclass, field
from kmodd.host.paths import CONTROL_SOCKET
from kmodd.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_WIDEST = 80
"""Columns of a help text at most."""
_NARROWEST = 40
_TEXT = 30
"""Columns that a text beside a label needs; where there are fewer, it begins below the label."""
_INDENT = 24
"""Column of the text of an option."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a verb."""

    names: str
    """As in the help: `-t, --timeout`, or `--json`."""
    text: str
    value: str = ""
    """Placeholder of its value; empty: it takes none."""

    @property
    def words(self) -> list[str]:
        """The names, each with its dashes."""
        return self.names.split(", ")


HELP = Option("-h, --help", "show this help")
ROOT = Option("--root", "prefix of all paths that are read", "DIR")
KERNEL = Option("--kernel", "kernel release (default: the running one)", "RELEASE")
SOCKET = Option("--socket", f"control socket (default: {CONTROL_SOCKET})", "PATH")
DEFAULT_TIMEOUT = "120"
TIMEOUT = Option("-t, --timeout", f"seconds to wait at most (default: {DEFAULT_TIMEOUT})", "SEC")
NOT_RUNNING = (7, "the daemon is not running")
JSON = Option("--json", "print JSON, one object a line")


@dataclass(frozen=True, slots=True)
class Given:
    """A command line, parsed."""

    values: dict[str, list[str]] = field(default_factory=dict)
    """Long name of each option that is given, without dashes → its values, empty texts for an option without any."""
    operands: list[str] = field(default_factory=list)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def get(self, name: str, default: str = "") -> str:
        """Return the last value of an option."""
        return self.values[name][-1] if name in self.values else default


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb, or a word of one such as `policy check`."""

    name: str
    text: str
    """What it does, in whole sentences."""
    options: tuple[Option, ...] = ()
    operands: str = ""
    """As in the usage line: `REQUEST…`."""
    status: tuple[tuple[int, str], ...] = ()
    """Exit statuses beside 2, wrong usage, each with its meaning."""
    examples: tuple[tuple[str, str], ...] = ()
    """Command lines without `kmodd`, each with what it is for."""

    def parse(self, argv: list[str], fewest: int = 0, most: int | None = None) -> Given | int:
        """Return the parsed command line; an exit status if it is wrong or asks for help, after a message or the help.

        fewest, most: number of operands; None: any number. Options may be abbreviated and follow operands.
        """
        short, long = "", {}
        for option in (*self.options, HELP):
            takes = ":" if option.value else ""
            name = option.words[-1][2:]
            long[name] = name + takes
            if len(option.words) > 1:
                short += option.words[0][1:] + takes
        letters = {option.words[0][1:]: option.words[-1][2:] for option in (*self.options, HELP)}
        parsed = Options(argv, short, long)
        given = Given(operands=parsed.operands)
        try:
            for code, value in parsed:
                name = letters.get(code, code)
                if name == "help":
                    print(self.help(), end="")
                    return 0
                given.values.setdefault(name, []).append(value)
        except OptionError as error:
            return self.refuse(str(error))
        if len(given.operands) < fewest:
            words = [part.split()[0].rstrip("…") for part in self.operands.split(" | ")]
            return self.refuse(f"{' or '.join(words)} is missing")
        if most is not None and len(given.operands) > most:
            return self.refuse(f"unexpected operand {given.operands[most]!r}")
        return given

    def parse_word(self, words: Mapping[str, Verb], argv: list[str]) -> tuple[str, Given] | int:
        """Parse a call whose first operand is one of `words`, each with options and perhaps one operand of its own.

        Returns the word, with what follows it; or the exit status, after a message or the help.
        """
        if argv and argv[0] in words:
            verb = words[argv[0]]
            operands = 1 if verb.operands else 0
            given = verb.parse(argv[1:], operands, operands)
            return given if isinstance(given, int) else (argv[0], given)
        given = self.parse(argv, 1)
        if isinstance(given, int):
            return given
        return self.refuse(f"unknown word {given.operands[0]!r}; expected {' or '.join(words)}")

    def refuse(self, why: str) -> int:
        """Print what is wrong with the command line, and return the exit status for that."""
        self.complain(f"{why}; see `kmodd {self.name} --help`")
        return 2

    def complain(self, text: str) -> None:
        """Print a message on standard error."""
        lines = "\n".join(map(printable, text.split("\n")))
        print(f"kmodd {self.name}: {lines}", file=sys.stderr)

    def help(self) -> str:
        """Return the text of --help."""
        width = help_width()
        options = (*self.options, HELP)
        optional = " [OPTION…]" if self.options else ""
        parts = [f"usage: kmodd {self.name}{optional}{' ' + self.operands if self.operands else ''}\n"]
        parts += [f"\n{_wrapped(paragraph, width)}\n" for paragraph in self.text.split("\n\n")]
        parts.append(f"\noptions:\n{columns([(_label(option), option.text) for option in options], width)}")
        if self.status:
            meanings = sorted([*self.status, (2, "wrong usage")])
            parts.append(f"\nexit status:\n{columns([(f'  {code}', what) for code, what in meanings], width, 5)}")
        if self.examples:
            examples = "".join(f"  kmodd {line}\n{_wrapped(what, width, '      ')}\n" for line, what in self.examples)
            parts.append(f"\nexamples:\n{examples}")
        return "".join(parts)


def columns(rows: Sequence[tuple[str, str]], width: int, indent: int = _INDENT) -> str:
    """Return rows of a label and a text as lines of at most `width` columns; texts begin at column `indent`."""
    lines = []
    for label, text in rows:
        has_room = width - indent >= _TEXT
        beside = has_room and len(label) < indent - 1
        margin = " " * (indent if has_room else 6)
        wrapped = _wrapped(text, width, margin)
        lines.append(label + wrapped[len(label) :] if beside else f"{label}\n{wrapped}")
    return "".join(f"{line}\n" for line in lines)


def help_width() -> int:
    """Return the columns of a help text: those of the terminal, within limits."""
    told = os.environ.get("COLUMNS", "")
    try:
        given = int(told) if told.isdecimal() else os.get_terminal_size(1).columns
    except OSError:
        given = _WIDEST
    return min(max(given, _NARROWEST), _WIDEST)


def _label(option: Option) -> str:
    value = f" {option.value}" if option.value else ""
    return f"  {'' if len(option.words) > 1 else '    '}{option.names}{value}"


def _wrapped(text: str, width: int, margin: str = "") -> str:
    """Return a text as lines of at most `width` columns, no line end at the end; a longer word is not broken."""
    lines, line = [], margin
    for word in text.split():
        if line != margin and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = margin
        line += word if line == margin else f" {word}"
    return "\n".join([*lines, line])


def seconds_of(text: str) -> int | None:
    """Return the µs of a number of seconds on the command line; None: it is no number, or below 0 or above 1e9."""
    try:
        seconds = float(text)
    except ValueError:
        return None
    return int(seconds * 1e6) if 0 <= seconds < 1e9 else None
