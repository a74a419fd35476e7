"""journald on a simulated machine: a socket that is full after some records while journald does not read."""

from __future__ import annotations

import re

from kmodd.planning.record import JOURNAL_GAP

ROOM = 3
"""Datagrams that the socket holds."""

QUEUE = 8
"""Records that a daemon keeps for a journald that does not read."""


class Journald:
    """Takes the datagrams of daemons."""

    def __init__(self) -> None:
        self._reads = True
        self._unread = 0
        self.records = 0
        """Records that have come."""
        self.told_lost = 0
        """Records that were lost, by the records about that."""

    def set_reading(self, reads: bool) -> None:
        """Have journald stop, or go on and read what the socket has."""
        self._reads = reads
        self._unread = 0

    def send(self, data: bytes) -> bool:
        """Take a datagram. Returns whether the socket had room."""
        if not self._reads:
            if self._unread >= ROOM:
                return False
            self._unread += 1
        if JOURNAL_GAP.encode() in data:
            found = re.match(rb"MESSAGE=(\d+) records? lost", data)
            assert found, data
            self.told_lost += int(found[1])
        else:
            self.records += 1
        return True
