"""`kmodd timeline`: when the modules of a boot were loaded, as an SVG picture, as text on a terminal, or as JSON."""

from __future__ import annotations

import json
import sys

from kmodd.cli.journal_options import BOOT, DIRECTORY, query_of, read_entries, with_boot
from kmodd.cli.terminal import Colour, columns_of, paint, show
from kmodd.cli.timeline_svg import draw, notes_of, rows_of, summary_of, title_of
from kmodd.cli.verb import JSON, ROOT, Given, Option, Verb
from kmodd.planning.timeline import Load, Timeline, timeline_of
from kmodd.text import count_of, duration, printable, shortened

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

STATUS = ((0, "done"), (1, "no loads before the end of coldplug are on record, or the journal cannot be read"))

VERB = Verb(
    "timeline",
    "Show when the modules of a boot (the current one without -b) were loaded, until coldplug has ended: for each "
    "device the wait for a loader, the modules that its driver needs, and the driver's init. What the boot waited for "
    "is marked. The output is an SVG picture for light and dark surroundings, on a terminal text.",
    (BOOT, Option("--text", "text, also where standard output is no terminal"), JSON, DIRECTORY, ROOT),
    status=STATUS,
    examples=(
        ("timeline > boot.svg", "Draw this boot; a browser shows the details of a bar under the pointer."),
        ("timeline -b -1", "The boot before, on the terminal."),
    ),
)

_WIDTH = 100
"""Columns of the text where there is no terminal."""
_NARROWEST = 12
"""Columns of the bars at least."""


def main(argv: list[str]) -> int:
    """Print the timeline and return 0; 1 without records."""
    given = VERB.parse(with_boot(argv), most=0)
    if isinstance(given, int):
        return given
    timeline = read_timeline(VERB, given)
    if timeline is None:
        return 1
    if "json" in given:
        show("".join(f"{json.dumps(_object(load))}\n" for load in timeline.loads))
    elif "text" in given or sys.stdout.isatty():
        show(_text(timeline, columns_of(sys.stdout) or _WIDTH))
    else:
        show(draw(timeline))
    return 0


def read_timeline(verb: Verb, given: Given) -> Timeline | None:
    """Return the loads of the boot that a command line names; None if there are none, after a message.

    Without a boot it is the current one, of other journal files than this machine's the last one.
    """
    is_foreign = "directory" in given or "root" in given
    entries = read_entries(verb, query_of(given, boot="" if is_foreign else "0"))
    if entries is None:
        return None
    timeline = timeline_of(entry for entry in entries if entry.boot == entries[-1].boot)
    if not timeline.loads:
        later = count_of(timeline.later, "load")
        verb.complain(
            f"no loads of that boot before the end of coldplug, {later} after it; `kmodd history` shows them"
            if timeline.later
            else "no loads of that boot are on record"
        )
        return None
    return timeline


def _object(load: Load) -> dict[str, Any]:
    return {
        "module": load.module,
        "result": load.result,
        "source": load.source,
        "subject": load.subject,
        "device": load.device or None,
        "device_name": load.name or None,
        "begin_usec": load.begin,
        "start_usec": load.start,
        "end_usec": load.end,
        "inits": [{"module": name, "usec": usec} for name, usec in load.inits],
        "lane": load.lane,
        "awaited": load.is_awaited,
    }


def _text(timeline: Timeline, width: int) -> str:
    """Return the timeline as lines of at most `width` columns."""
    bars = max(width * 2 // 5, _NARROWEST)
    rows = rows_of(timeline)
    lines = [title_of(timeline), summary_of(timeline), ""]
    ends = f"{duration(timeline.begin)}{duration(timeline.end):>{max(bars - len(duration(timeline.begin)), 1)}}"
    text = "".join(f"{_cut(line, width)}\n" for line in [*lines, f"  {ends}"])
    for load in rows:
        failed = "" if load.result == "loaded" else f" {load.result}"
        label = f"{load.module}{failed} {duration(load.end - load.start)}  {load.subject}"
        line = f"{'*' if load.is_awaited else ' '} {_bars(load, timeline, bars)} {label}"
        colour: Colour = "red" if failed else "bold" if load.is_awaited else ""
        text += paint(_cut(line, width), colour, sys.stdout) + "\n"
    legend = ". waits for a loader", "- loads what it needs", "# init", "* the boot waited for it"
    return text + "\n" + "".join(f"{_cut(line, width)}\n" for line in (*legend, notes_of(timeline, rows)) if line)


def _bars(load: Load, timeline: Timeline, columns: int) -> str:
    """Return the bars of a load, in so many columns."""
    span = max(timeline.end - timeline.begin, 1)

    def column(usec: int) -> int:
        return min((usec - timeline.begin) * columns // span, columns - 1)

    begin, start, end = column(load.begin), column(load.start), column(load.end)
    init = min(column(max(load.end - load.init, load.start)), end)
    bars = " " * begin + "." * (start - begin) + "-" * (init - start) + "#" * (end - init + 1)
    return bars.ljust(columns)


def _cut(line: str, width: int) -> str:
    return shortened(printable(line), width)
