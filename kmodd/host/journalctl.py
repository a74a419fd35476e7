"""Read kmodd's records from the journal with `journalctl --output=json`, or from a file with its output."""

from __future__ import annotations

import contextlib
import errno
import re
import subprocess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import IO

_LONGEST = 1 << 20
"""Characters of the longest line that can be a record; one of kmodd has a few thousand."""


@contextlib.contextmanager
def journal_records(source: str | None, since: str | None, *, boot: bool = False) -> Iterator[Iterable[str]]:
    """Give the lines of records, one JSON object each, in a `with` block.

    source: a file, `-` for standard input, None for the journal. since: for the journal, a time span before now (`7d`)
    or a date. boot: for the journal, the current boot only. Raises OSError; CalledProcessError if journalctl fails.
    """
    if source is not None:
        with open(0 if source == "-" else source, encoding="utf-8", errors="surrogateescape") as file:
            yield _lines(file)
        return
    command = ["journalctl", "--output=json", "--all", "--quiet", "--no-pager", "_UID=0", "SYSLOG_IDENTIFIER=kmodd"]
    if boot:
        command.append("--boot")
    if since:
        is_span = re.fullmatch(r"([0-9]+ *[a-zA-Z]+ *)+", since)
        command.append(f"--since=-{since}" if is_span else f"--since={since}")
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", errors="surrogateescape") as process:
        assert process.stdout is not None
        yield _lines(process.stdout)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def _lines(file: IO[str]) -> Iterator[str]:
    """Yield the lines of a file. Raises OSError: EFBIG for a line without an end, as that of a device."""
    while line := file.readline(_LONGEST):
        if len(line) == _LONGEST:
            raise OSError(errno.EFBIG, f"a line has more than {_LONGEST >> 20} MiB, so it is no record")
        yield line
