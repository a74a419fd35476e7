"""Read kmodd's records from the journal with `journalctl --output=json`, or from a file with its output.

The same program that an administrator uses decides which boot `-1` is, what `yesterday` means, and who may read what.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import re
import subprocess
import threading

from kmodd.dataclass import dataclass
from kmodd.planning.history import IDENTIFIER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import IO

_LONGEST = 1 << 20
"""Characters of the longest line that can be a record; one of kmodd has a few thousand."""
VOLATILE = "/run/log/journal/*/system.journal"
"""Where journald writes while it keeps nothing on disk (systemd-journald.service(8))."""
FILES = ("/var/log/journal/*/system.journal", VOLATILE)


@dataclass(frozen=True, slots=True)
class Query:
    """Which records to read. Boot, since and until are in the words of journalctl(1)."""

    boot: str = ""
    """`0` for the current boot, `-1` for the one before, or an id; empty: all boots."""
    since: str = ""
    """A date, or a time span before now (`7d`)."""
    until: str = ""
    directory: str = ""
    """Directory of journal files; empty: this machine's."""
    source: str = ""
    """File with the output of `journalctl --output=json --all`, `-` for standard input; empty: the journal."""
    matches: tuple[str, ...] = ()
    """Further conditions, `FIELD=value` or `+`, as on the command line of journalctl; those of one field are joined by
    or."""


EVERYTHING = Query()
THIS_BOOT = Query(boot="0")


@contextlib.contextmanager
def journal_records(query: Query, limit: float | None = None) -> Iterator[Iterable[str]]:
    """Give the lines of records, one JSON object each, in a `with` block; `entries_of` makes values of them.

    limit: seconds for journalctl. Raises OSError, TimeoutError for one that took longer; CalledProcessError if
    journalctl fails, which has printed the reason.
    """
    if query.source:
        with open(0 if query.source == "-" else query.source, encoding="utf-8", errors="surrogateescape") as file:
            yield _lines(file)
        return
    command = command_of(query)
    is_late = threading.Event()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, encoding="utf-8", errors="surrogateescape"
    ) as process:
        assert process.stdout is not None
        with _killed_after(limit, process, is_late) if limit else contextlib.nullcontext():
            yield _lines(process.stdout)
            process.wait()
    if is_late.is_set():
        raise TimeoutError(errno.ETIMEDOUT, f"journalctl took longer than {limit}s")
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


@contextlib.contextmanager
def _killed_after(limit: float, process: subprocess.Popen[str], is_late: threading.Event) -> Iterator[None]:
    """Kill a process after `limit` seconds, in a `with` block, and set `is_late` then."""

    def kill() -> None:
        is_late.set()
        process.kill()

    timer = threading.Timer(limit, kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def command_of(query: Query) -> list[str]:
    """Return the command line of journalctl: records that root wrote in kmodd's name."""
    command = ["journalctl", "--output=json", "--all", "--quiet", "--no-pager"]
    if query.directory:
        command.append(f"--directory={query.directory}")
    if query.boot:
        command.append(f"--boot={query.boot}")
    command += [f"--{name}={_time(text)}" for name, text in (("since", query.since), ("until", query.until)) if text]
    own = ["_UID=0", f"SYSLOG_IDENTIFIER={IDENTIFIER}"]
    command += own
    for match in query.matches:
        command += [match, *own] if match == "+" else [match]
    return command


def is_volatile() -> bool:
    """Return whether this machine's journal is in memory alone now, so that an earlier boot's is gone."""
    return bool(glob.glob(VOLATILE))


def _time(text: str) -> str:
    """Return a time for journalctl, which takes a span before now with a sign only."""
    return f"-{text}" if re.fullmatch(r"([0-9.]+ *[a-zA-Z]+ *)+", text) else text


def _lines(file: IO[str]) -> Iterator[str]:
    """Yield the lines of a file. Raises OSError: EFBIG for a line without an end, as that of a device."""
    while line := file.readline(_LONGEST):
        if len(line) == _LONGEST:
            raise OSError(errno.EFBIG, f"a line has more than {_LONGEST >> 20} MiB, so it is no record")
        yield line
