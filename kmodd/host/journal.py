"""Write records to journald, or as text lines to a terminal.

systemd-python's `journal.send` blocks, with the interpreter lock held, when journald is stopped and its socket is full,
which must not stop the loading of modules. So records are sent as datagrams of journald's native protocol, without
blocking and with a bounded queue (systemd.io/JOURNAL_NATIVE_PROTOCOL).
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections import deque

from kmodd.planning.record import JOURNAL_GAP, WARNING, Record
from kmodd.text import count_of, encode, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol, TextIO
else:
    Protocol = object

JOURNAL_SOCKET = "/run/systemd/journal/socket"
IDENTIFIER = "kmodd"
LIMIT = 4096
"""Records queued while journald does not read, at most about 4 MiB; further ones are counted and dropped."""

_RETRY_BLOCKED, _RETRY_FULL = 5.0, 0.02
"""Seconds until the next attempt to send: journald does not read; it reads, but its socket, with room for some hundred
records, is full again.
"""

_LEVELS = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")


class Journal(Protocol):
    """Takes records without blocking."""

    def write(self, record: Record) -> None:
        """Send one record, now or later."""

    def flush(self) -> float | None:
        """Send queued records as far as possible. Return seconds until the next attempt, None if the queue is empty."""

    def close(self) -> None:
        """Send queued records as far as possible, and close."""

    @property
    def lost(self) -> int:
        """Number of records dropped so far."""


class RecordQueue:
    """Datagrams for journald, in a bounded queue while it does not read."""

    def __init__(self, send: Callable[[bytes], bool], limit: int = LIMIT) -> None:
        """`send` returns whether a datagram was sent. `limit`: of queued records."""
        self._send = send
        self._limit = limit
        self._waiting: deque[bytes] = deque()
        self._unreported = 0
        """Dropped records without a JOURNAL_GAP record so far."""
        self.lost = 0

    @property
    def waiting(self) -> int:
        """Number of queued records."""
        return len(self._waiting)

    def write(self, record: Record) -> None:
        """Send one record, or queue it; count it as lost where the queue is full."""
        if len(self._waiting) >= self._limit:
            self.lost += 1
            self._unreported += 1
            return
        self._waiting.append(datagram(record))
        self.flush()

    def flush(self) -> float | None:
        """Send queued records as far as possible, then how many were lost. Returns what `Journal.flush` does."""
        pause = _RETRY_BLOCKED
        while self._waiting:
            if not self._send(self._waiting[0]):
                return pause
            self._waiting.popleft()
            pause = _RETRY_FULL
        if self._unreported:
            gap = Record(
                JOURNAL_GAP, WARNING, f"{count_of(self._unreported, 'record')} lost while journald did not read"
            )
            if not self._send(datagram(gap)):
                return pause
            self._unreported = 0
        return None


class JournalSocket(RecordQueue):
    """journald, by datagrams that are sent without blocking."""

    def __init__(self, path: str = JOURNAL_SOCKET) -> None:
        """Send to the socket at `path`."""
        super().__init__(self._send_to_socket)
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    def close(self) -> None:
        self.flush()
        self._socket.close()

    def _send_to_socket(self, data: bytes) -> bool:
        try:
            self._socket.sendto(data, self._path)
        except OSError as error:
            # A record too large for a datagram counts as sent; other errors (full, no journald) are temporary.
            return error.errno == errno.EMSGSIZE
        return True


class TextJournal:
    """Text lines on a stream, for `kmodd run` in a terminal."""

    lost = 0

    def __init__(self, stream: TextIO, lowest: int) -> None:
        """Write to `stream` the records of syslog level `lowest` and more important ones."""
        self._stream = stream
        self._lowest = lowest

    def write(self, record: Record) -> None:
        if record.priority <= self._lowest:
            with contextlib.suppress(OSError):
                line = f"{_LEVELS[record.priority]:7} {printable(record.message)}\n"
                self._stream.write(line.encode("utf-8", "backslashreplace").decode())
                self._stream.flush()

    def flush(self) -> float | None:
        return None

    def close(self) -> None:
        pass


def open_journal(*, under_systemd: bool, lowest: int, stream: TextIO) -> Journal:
    """Return journald for a service, else text on `stream`. `lowest`: see `TextJournal`."""
    return JournalSocket() if under_systemd else TextJournal(stream, lowest)


def datagram(record: Record) -> bytes:
    """Return `record` in journald's protocol: `NAME=value` lines, or name, length and bytes for multi-line values."""
    fields = [
        ("MESSAGE", printable(record.message)),
        ("PRIORITY", str(record.priority)),
        ("MESSAGE_ID", record.message_id),
        ("SYSLOG_IDENTIFIER", IDENTIFIER),
        *record.fields,
    ]
    text = "".join([f"{name}={value}\n" for name, value in fields])
    if text.count("\n") == len(fields):  # no value has a line end, the usual case
        return encode(text)
    parts = []
    for name, words in fields:
        value = encode(words)
        if b"\n" in value:
            parts += [name.encode(), b"\n", len(value).to_bytes(8, "little"), value, b"\n"]
        else:
            parts += [name.encode(), b"=", value, b"\n"]
    return b"".join(parts)
