"""Tables and colours: on a terminal the table fits its width; elsewhere it is complete, and without colours."""

from __future__ import annotations

import os
import sys

from kmodd.text import columns_of_text, encode, printable, shortened

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal, TextIO

    Colour = Literal["", "red", "yellow", "green", "bold"]
else:
    Colour = str

SEPARATOR = "\x1e"
"""Begins each object of a JSON text sequence (RFC 7464, section 2.2)."""
_CODES = {"red": "\x1b[0;1;31m", "yellow": "\x1b[0;1;33m", "green": "\x1b[0;32m", "bold": "\x1b[0;1m"}
"""As systemctl's: an error, a warning, what is well, a heading (systemd, src/basic/terminal-util.h)."""
_END = "\x1b[0m"
_GAP = "  "
_LEAST = 6
"""Columns that a shortened cell keeps."""


def has_colour(stream: TextIO) -> bool:
    """Return whether to write colours: to a terminal that has them, unless NO_COLOR is set (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") not in ("", "dumb")


def paint(text: str, colour: Colour, stream: TextIO) -> str:
    """Return the text with the codes of a colour, or as it is where there are none."""
    return f"{_CODES[colour]}{text}{_END}" if colour and has_colour(stream) else text


def columns_of(stream: TextIO) -> int | None:
    """Return the columns of a terminal, COLUMNS before what it says itself; None: it is no terminal."""
    if not stream.isatty():
        return None
    told = os.environ.get("COLUMNS", "")
    try:
        return int(told) if told.isdecimal() and int(told) else os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    shrinks: Sequence[int],
    colours: Sequence[Colour] = (),
    *,
    kept: int = _LEAST,
    last_is_spare: bool = False,
) -> str:
    """Return a table with a line for each row; every cell is escaped to printable characters.

    header: the names of its columns. shrinks: numbers of the columns that are shortened first where the terminal is
    too narrow, one after the other, then the others from the left. colours: of the rows, on a terminal. kept: columns
    that each of `shrinks` keeps until all of them have been shortened. last_is_spare: the last column is left out
    rather than that others are shortened.
    """
    cells = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(columns_of_text(row[number]) for row in cells) for number in range(len(header))]
    limit = columns_of(sys.stdout)
    if limit is not None and last_is_spare and sum(widths[:-1]) + len(_GAP) * (len(widths) - 1) + _LEAST > limit:
        cells, widths = [row[:-1] for row in cells], widths[:-1]
    if limit is not None:
        first = [number for number in shrinks if number < len(widths)]
        for least, numbers in ((kept, first), (_LEAST, first), (_LEAST, range(len(widths)))):
            for number in numbers:
                excess = sum(widths) + len(_GAP) * (len(widths) - 1) - limit
                if excess > 0:
                    widths[number] = max(widths[number] - excess, min(widths[number], least))
    lines = []
    for number, row in enumerate(cells):
        colour = "bold" if number == 0 else colours[number - 1] if colours else ""
        line = _GAP.join(_fitted(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip()
        lines.append(paint(line, colour, sys.stdout) + "\n")
    return "".join(lines)


def _fitted(cell: str, width: int) -> str:
    cut = shortened(cell, width)
    return cut + " " * (width - columns_of_text(cut))


def show(text: str) -> None:
    """Write a text to standard output; in a locale without UTF-8 too, and bytes that are not UTF-8 as they came."""
    sys.stdout.flush()
    sys.stdout.buffer.write(encode(text))
    sys.stdout.flush()
