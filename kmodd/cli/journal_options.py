"""Options of the verbs that read the journal, which have journalctl's words and meaning, and the reading itself."""

from __future__ import annotations

import glob
import os
import re
import subprocess

from kmodd.cli.verb import Given, Option, Verb
from kmodd.host.journalctl import FILES, Query, is_volatile, journal_records
from kmodd.planning.history import Entry, Ignored, entries_of
from kmodd.text import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

BOOT = Option("-b, --boot", "a boot: 0 or none for the current one, -1 for the one before, or its id", "[ID]")
SINCE = Option("-S, --since", "7d, or a date as in journalctl(1)", "TIME")
UNTIL = Option("-U, --until", "as --since", "TIME")
DIRECTORY = Option("-D, --directory", "journal files in DIR, as those of other machines", "DIR")

_BOOT_ID = r"([0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})([+-][0-9]{1,9})?|[+-]?[0-9]{1,9}|all"
"""What journalctl takes as a boot."""


def with_boot(argv: Sequence[str]) -> list[str]:
    """Return a command line in which each -b has a value: its own, the next word if that is a boot, or 0.

    As journalctl's, whose option takes the next word only if it is one.
    """
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*words, word, *rest]
        if word == "-b" or (len(word) > 3 and "--boot".startswith(word)):
            word = f"--boot={rest.pop(0) if rest and re.fullmatch(_BOOT_ID, rest[0], re.ASCII) else 0}"
        words.append(word)
    return words


def query_of(given: Given, *, boot: str = "") -> Query:
    """Return the query that the options describe. boot: the boot if no option says which."""
    root = given.get("root").rstrip("/")
    directory = given.get("directory") or (f"{root}/var/log/journal" if root else "")
    boot = given.get("boot", boot) or ("0" if "boot" in given else "")  # as of journalctl, an empty one is the current
    boot = boot.replace("-", "", 4) if re.match(r"[0-9a-f]{8}-", boot, re.ASCII) else boot.removeprefix("+")
    return Query(boot, given.get("since"), given.get("until"), directory)


def read_entries(verb: Verb, query: Query) -> list[Entry] | None:
    """Return the entries of a query, in the order of the journal; None if it cannot be read, after a message."""
    ignored = Ignored()
    entries: list[Entry] = []
    has_failed = False
    try:
        with journal_records(query) as lines:
            entries = list(entries_of(lines, ignored))
    except subprocess.CalledProcessError:  # journalctl has printed the reason
        has_failed = True
    except OSError as error:
        verb.complain(f"Failed to read the journal: {error.strerror}: {error.filename or 'journalctl'}")
        return None
    if ignored.unreadable:
        verb.complain(f"Ignoring {count_of(ignored.unreadable, 'line')} of the journal without a record")
    why = "" if entries or query.directory else _why_empty(query)
    if why:
        verb.complain(why)
    return None if has_failed or why else entries


def _why_empty(query: Query) -> str:
    """Return why this machine's journal gives no records; empty: there are none."""
    if query.boot not in ("", "0", "-0") and is_volatile():
        return (
            "the journal is kept in memory only, so earlier boots are gone; run `mkdir /var/log/journal` and "
            "`journalctl --flush`, unless journald.conf has Storage=volatile"
        )
    return "" if _may_read() else "root and the groups systemd-journal and adm may read the system's journal"


def _may_read() -> bool:
    """Return whether this user may read the system's journal. Root in a container may be another user outside."""
    folders = [folder for pattern in FILES for folder in glob.glob(os.path.dirname(pattern))]
    if os.geteuid() == 0 and not any(map(_is_closed, folders)):
        return True
    return any(os.access(_file_in(folder), os.R_OK) for folder in folders)


def _is_closed(folder: str) -> bool:
    """Return whether this user may not read a folder of journal files, or the journal in it."""
    file = _file_in(folder)
    return not os.access(file if os.path.exists(file) else folder, os.R_OK)


def _file_in(folder: str) -> str:
    return os.path.join(folder, "system.journal")
