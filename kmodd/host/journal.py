"""Where records go: journald, or text lines where there is no journald to write to.

systemd-python's `journal.send` holds the interpreter's lock and blocks once journald is stopped and its socket
full; a loader must not stand still because of that. So records go out as datagrams of journald's native
protocol, never waiting, with a bounded backlog (systemd.io/JOURNAL_NATIVE_PROTOCOL).
"""

from __future__ import annotations

import contextlib
import errno
import socket
import sys
from collections import deque

from kmodd.planning.record import JOURNAL_GAP, WARNING, Record
from kmodd.text import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol, TextIO
else:
    Protocol = object

JOURNAL_SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "kmodd"
LIMIT = 4096
"""Records kept while journald does not read; further ones are counted and lost. About 4 MiB at the most."""

_NOTHING_GOES, _SOME_GO = 5.0, 0.02
"""Seconds: journald does not read; it does, and its socket, with room for some hundred records, is full again."""

_LEVELS = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")


class Journal(Protocol):
    """Takes records and never waits."""

    def write(self, record: Record) -> None:
        """Take one record; it is sent now or later."""

    def flush(self) -> float | None:
        """Send what waits, as far as it goes. The answer: seconds until the next try pays; None: nothing waits."""

    def close(self) -> None:
        """Send what can be sent, and be done."""

    @property
    def lost(self) -> int:
        """How many records were given up since the start."""


class JournalSocket:
    """journald, by datagrams that are never waited for."""

    def __init__(self, path: str = JOURNAL_SOCKET) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._waiting: deque[bytes] = deque()
        self._unsaid = 0
        self.lost = 0

    def write(self, record: Record) -> None:
        if len(self._waiting) >= LIMIT:
            self.lost += 1
            self._unsaid += 1
            return
        self._waiting.append(datagram(record))
        self.flush()

    def flush(self) -> float | None:
        pause = _NOTHING_GOES
        while self._waiting:
            if not self._send(self._waiting[0]):
                return pause
            self._waiting.popleft()
            pause = _SOME_GO
        if self._unsaid:
            gap = Record(JOURNAL_GAP, WARNING, f"{self._unsaid} records were lost while journald did not read")
            if not self._send(datagram(gap)):
                return pause
            self._unsaid = 0
        return None

    def close(self) -> None:
        self.flush()
        self._socket.close()

    def _send(self, data: bytes) -> bool:
        try:
            self._socket.sendto(data, self._path)
        except OSError as error:
            # Too large for a datagram can never be sent; anything else (full, journald away) passes.
            return error.errno == errno.EMSGSIZE
        return True


class TextJournal:
    """Lines on a stream, for `kmodd run` in a terminal."""

    lost = 0

    def __init__(self, stream: TextIO, lowest: int) -> None:
        """`lowest`: the syslog level of the least important records that are still shown."""
        self._stream = stream
        self._lowest = lowest

    def write(self, record: Record) -> None:
        if record.priority <= self._lowest:
            with contextlib.suppress(OSError):
                line = f"{_LEVELS[record.priority]:7} {record.message}\n"
                self._stream.write(line.encode("utf-8", "backslashreplace").decode())
                self._stream.flush()

    def flush(self) -> float | None:
        return None

    def close(self) -> None:
        pass


def open_journal(*, under_systemd: bool, lowest: int) -> Journal:
    """journald for a service, text on standard output for a person."""
    return JournalSocket() if under_systemd else TextJournal(sys.stdout, lowest)


def datagram(record: Record) -> bytes:
    """`record` in journald's native form: `NAME=value` lines, or name, length and bytes for values of several lines."""
    fields = [
        ("MESSAGE", record.message),
        ("PRIORITY", str(record.priority)),
        ("MESSAGE_ID", record.message_id),
        ("SYSLOG_IDENTIFIER", IDENTIFIER),
        *record.fields,
    ]
    text = "".join([f"{name}={value}\n" for name, value in fields])
    if text.count("\n") == len(fields):  # nearly always
        return encode(text)
    parts = []
    for name, words in fields:
        value = encode(words)
        if b"\n" in value:
            parts += [name.encode(), b"\n", len(value).to_bytes(8, "little"), value, b"\n"]
        else:
            parts += [name.encode(), b"=", value, b"\n"]
    return b"".join(parts)
