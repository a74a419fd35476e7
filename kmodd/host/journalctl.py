"""Read kmodd's records from the journal with `journalctl --output=json`, or from a file with its output."""

from __future__ import annotations

import contextlib
import re
import subprocess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@contextlib.contextmanager
def journal_records(source: str | None, since: str | None, *, boot: bool = False) -> Iterator[Iterable[str]]:
    """Give the lines of records, one JSON object each, in a `with` block.

    source: a file, `-` for standard input, None for the journal. since: for the journal, a time span before now (`7d`)
    or a date. boot: for the journal, the current boot only. Raises OSError; CalledProcessError if journalctl fails.
    """
    if source is not None:
        with open(0 if source == "-" else source, encoding="utf-8", errors="surrogateescape") as file:
            yield file
        return
    command = ["journalctl", "--output=json", "--all", "--quiet", "--no-pager", "_UID=0", "SYSLOG_IDENTIFIER=kmodd"]
    if boot:
        command.append("--boot")
    if since:
        is_span = re.fullmatch(r"([0-9]+ *[a-zA-Z]+ *)+", since)
        command.append(f"--since=-{since}" if is_span else f"--since={since}")
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", errors="surrogateescape") as process:
        assert process.stdout is not None
        yield process.stdout
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
