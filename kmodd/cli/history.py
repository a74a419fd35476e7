"""`kmodd history`: show what was loaded, refused or failed, for what and when, by the journal."""

from __future__ import annotations

import errno
import json
import sys
import time

from kmodd.cli.device_paths import asking_path, device_path
from kmodd.cli.journal_options import BOOT, DIRECTORY, SINCE, UNTIL, query_of, read_entries, with_boot
from kmodd.cli.terminal import Colour, columns_of, show, table
from kmodd.cli.verb import JSON, ROOT, Given, Option, Verb
from kmodd.host.users import uid_of
from kmodd.names import module_name
from kmodd.planning.history import Entry, Filter, as_object, subject_of_entry
from kmodd.planning.record import KINDS
from kmodd.text import duration, printable

VERB = Verb(
    "history",
    "Show what was loaded, refused or failed, for what device or process, and when, by the records of kmodd in the "
    "journal; without -b, of all boots. Only records that root wrote count.",
    (
        BOOT, SINCE, UNTIL,
        Option("--module", "loads of MODULE, as a dependency too, and what was refused or failed", "MODULE"),
        Option("--device", "a /sys/… or /dev/… path, with what is below it, or a name such as 0000:00:1f.2", "DEVICE"),
        Option("--user", "requests of this user's processes", "USER"),
        Option("--result", "as KMODD_RESULT: loaded, denied, failed…; several with commas", "RESULT"),
        Option("-n, --lines", "the last NUMBER records only", "NUMBER"),
        JSON, DIRECTORY, ROOT,
    ),
    status=((0, "done"), (1, "there is no such record, or the journal cannot be read")),
    examples=(
        ("history -b", "What has been loaded since this boot?"),
        ("history -b -1 --result failed,denied,missing", "What went wrong in the boot before?"),
        ("history --module sctp --json | jq -r .requester.exe", "Who has made the kernel load it?"),
    ),
)  # fmt: skip

_COLOURS: dict[str, Colour] = {
    **dict.fromkeys(("failed", "crashed", "stuck", "not_removed"), "red"),
    **dict.fromkeys(("denied", "blocked", "blacklisted", "missing"), "yellow"),
}
_NARROW = 60
"""Columns of a terminal below which the table has the time of day and no details."""


def main(argv: list[str]) -> int:
    """Print the table or objects and return 0; 1 if no record fits or the journal cannot be read; 2 for wrong usage."""
    given = VERB.parse(with_boot(argv), most=0)
    if isinstance(given, int):
        return given
    try:
        wanted, lines = _filter(given), _lines(given.get("lines"))
    except ValueError as error:
        return VERB.refuse(str(error))
    entries = read_entries(VERB, query_of(given))
    if entries is None:
        return 1
    found = [entry for entry in entries if entry.is_decision and wanted.admits(entry)][-lines:]
    if not found:
        VERB.complain("no such record")
        return 1
    show("".join(f"{json.dumps(as_object(entry))}\n" for entry in found) if "json" in given else _table(found))
    return 0


def _filter(given: Given) -> Filter:
    """Return the conditions that the options state. Raises ValueError."""
    device, root = given.get("device"), given.get("root").rstrip("/")
    results = tuple(part for text in given.values.get("result", ()) for part in text.split(","))
    for result in results:
        if result not in KINDS:
            raise ValueError(f"invalid --result {result!r}; expected {', '.join(KINDS)}")
    uid = uid_of(given.get("user"), root) if "user" in given else None
    return Filter(module_name(given.get("module")), asking_path(device_path(device, root), root), uid, results)


def _lines(text: str) -> int:
    """Return a number of lines; 0: all. Raises ValueError."""
    if text and not (text.isdecimal() and int(text[:10]) > 0):
        raise ValueError(f"invalid --lines {text!r}; expected a number of at least 1")
    return int(text[:10] or 0)


def _table(entries: list[Entry]) -> str:
    """Return a table with a line for each entry, and one before each boot as journalctl has it."""
    limit = columns_of(sys.stdout)
    narrow = limit is not None and limit < _NARROW
    hosts = len({entry.host for entry in entries}) > 1
    header = ["TIME", "RESULT", "MODULE", "FOR", "TOOK", "DETAIL"]
    shrinks = [5, 3, 2] if not narrow else [3, 2]
    rows = [_row(entry, "%H:%M:%S" if narrow else "%b %d %H:%M:%S") for entry in entries]
    if narrow:
        header, rows = header[:4], [row[:4] for row in rows]
    if hosts:
        header.append("HOST")
        rows = [[*row, entry.host] for row, entry in zip(rows, entries, strict=True)]
    first, *lines = table(header, rows, shrinks, [_COLOURS.get(entry.result, "") for entry in entries]).splitlines(True)
    boots = len({entry.boot for entry in entries}) > 1
    before, parts = "", [first]
    for entry, line in zip(entries, lines, strict=True):
        if boots and entry.boot != before:
            parts.append(f"-- Boot {entry.boot} --\n")
        before = entry.boot
        parts.append(line)
    return "".join(parts)


def _row(entry: Entry, form: str) -> list[str]:
    when = time.strftime(form, time.localtime(entry.realtime / 1e6))
    module = entry.module or printable(entry.alias)
    took = duration(entry.duration) if entry.duration else "-"
    return [when, entry.result, module or "-", subject_of_entry(entry) or "-", took, _detail(entry)]


def _detail(entry: Entry) -> str:
    others = " ".join(name for name in entry.changed if name != entry.module)
    code = errno.errorcode.get(entry.errno, str(entry.errno)) if entry.errno else ""
    place = str(entry.at) if entry.at else ""
    repeated = f"{entry.repeated} more" if entry.repeated else ""
    parts = (f"with {others}" if others else "", code, place, repeated)
    return "; ".join(part for part in parts if part) or "-"
