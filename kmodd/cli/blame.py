"""`kmodd blame`: the modules of a boot by the duration of their load, and what waited meanwhile."""

from __future__ import annotations

import json
import re
from functools import cache

from kmodd.cli.journal_options import BOOT, DIRECTORY, with_boot
from kmodd.cli.terminal import Colour, show, table
from kmodd.cli.timeline import STATUS, read_timeline
from kmodd.cli.verb import JSON, ROOT, Verb
from kmodd.dataclass import dataclass
from kmodd.errors import NoTree
from kmodd.host.tree import Tree
from kmodd.names import module_of_path
from kmodd.planning.timeline import Load, Timeline, Waited, waited_meanwhile
from kmodd.text import duration, printable, shortened

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

VERB = Verb(
    "blame",
    "List the modules of a boot (the current one without -b) by the duration of their load, the slowest first, until "
    "coldplug has ended. Beside each is what could have gone in parallel: loads that waited for a loader meanwhile and "
    "do not need the module. More of them run at a time with a higher Lanes= in kmodd.conf(5). * marks what the boot "
    "waited for.",
    (BOOT, JSON, DIRECTORY, ROOT),
    status=STATUS,
    examples=(
        ("blame", "Which drivers are slow at boot?"),
        ("blame --json | jq -r 'select(.awaited).module'", "Names of the modules that the boot waited for."),
    ),
)

_NAMED = 3
"""Modules that are named in a cell."""
_SUBJECT = 32
"""Columns of what a module was loaded for."""
_LISTED = 16
"""Loads that an object names, as KMODD_DEVPATH of a record does devices."""


@dataclass(frozen=True, slots=True)
class _Row:
    """A module that was loaded."""

    module: str
    usec: int
    load: Load
    waited: tuple[Waited, ...]


def main(argv: list[str]) -> int:
    """Print the list and return 0; 1 without records."""
    given = VERB.parse(with_boot(argv), most=0)
    if isinstance(given, int):
        return given
    timeline = read_timeline(VERB, given)
    if timeline is None:
        return 1
    most = (_LISTED if "json" in given else _NAMED) + 1
    rows = _rows(timeline, _needs(timeline, given.get("root").rstrip("/")), most)
    if "json" in given:
        show("".join(f"{json.dumps(_object(row))}\n" for row in rows))
    else:
        header = ("", "TIME", "MODULE", "FOR", "COULD HAVE GONE IN PARALLEL")
        colours: list[Colour] = ["" if row.load.result == "loaded" else "red" for row in rows]
        show(table(header, [_cells(row) for row in rows], [4, 3], colours, last_is_spare=True))
    return 0


def _rows(timeline: Timeline, needs: Callable[[str], frozenset[str]], most: int) -> list[_Row]:
    """Return a row for each module. most: number of loads that waited, for each."""
    parts = [(name, part, load) for load in timeline.loads for name, part in load.parts]
    parts.sort(key=lambda each: each[1].begin - each[1].end)
    return [
        _Row(name, part.end - part.begin, load, tuple(waited_meanwhile(name, part, timeline.loads, needs, most)))
        for name, part, load in parts
    ]


def _needs(timeline: Timeline, root: str) -> Callable[[str], frozenset[str]]:
    """Return a function from a module to those that it needs, as the module tree of that boot's kernel has them."""
    release = re.search(r"kernel ([^\s,;/]+)", timeline.greeting)
    tree = Tree(root, release[1] if release else None)
    try:
        tree.check()
        catalog = tree.quick_snapshot().catalog
    except NoTree:
        return lambda _: frozenset()

    @cache
    def needs(name: str) -> frozenset[str]:
        line = catalog.dep(name)
        return frozenset(map(module_of_path, line.deps)) if line else frozenset()

    return needs


def _cells(row: _Row) -> tuple[str, ...]:
    load = row.load
    subject = load.subject
    if row.module != load.module:
        subject = f"{load.module}, for {subject}"
    subject = shortened(printable(subject), _SUBJECT)
    failed = "" if load.result == "loaded" else f" ({load.result})"
    names = [waited.load.module for waited in row.waited]
    more = " and more" if len(names) > _NAMED else ""
    waiting = ", ".join(names[:_NAMED]) + more
    return "*" if load.is_awaited else "", duration(row.usec), row.module + failed, subject, waiting or "-"


def _object(row: _Row) -> dict[str, Any]:
    load = row.load
    return {
        "module": row.module,
        "usec": row.usec,
        "result": load.result,
        "for": load.module,
        "subject": load.subject,
        "device": load.device or None,
        "device_name": load.name or None,
        "awaited": load.is_awaited,
        "parallel": [{"module": each.load.module, "waited_usec": each.usec} for each in row.waited[:_LISTED]],
        "parallel_more": len(row.waited) > _LISTED,
    }
