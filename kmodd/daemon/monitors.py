"""`Monitor` calls: each gets a reply for every record of a decision, until its caller disconnects."""

from __future__ import annotations

import time

from kmodd.engine.events import Log
from kmodd.host.config_files import secret_files
from kmodd.host.varlink_server import Connection, ControlSocket
from kmodd.planning.decision import public_record
from kmodd.planning.record import Record
from kmodd.state.call_budget import CallBudget

MAX_MONITORS = 16
"""Calls of users other than root at a time, as each record is work for each of them."""
MAX_OF_USER = 4
"""Calls of one user at a time."""


class Monitors:
    """Holds the calls that get records."""

    def __init__(self, socket: ControlSocket, budget: CallBudget, root: str) -> None:
        """budget: the time that users may take, for this and for their other calls. root: of the configuration."""
        self._socket = socket
        self._budget = budget
        self._root = root
        self._missed: dict[Connection, int] = {}
        """Caller → records that it did not get since the last one, as the time of its user was used up."""

    def add(self, connection: Connection) -> None:
        """Send records to a caller from now on, or refuse that."""
        self._forget()
        users = [other.uid for other in self._missed if other.uid != 0]
        is_full = len(users) >= MAX_MONITORS or users.count(connection.uid) >= MAX_OF_USER
        if connection.uid != 0 and is_full:
            self._socket.refuse(connection, "Busy", {})
        else:
            self._missed[connection] = 0
            self._socket.begin_stream(connection)

    def write(self, log: Log, now: float) -> None:
        """Send a record about a request to all callers. now: monotonic, seconds."""
        if not self._missed or log.about is None:
            return
        self._forget()
        import json  # here: boot must not wait for the import

        texts: dict[int, str] = {}
        """uid → what its callers get."""
        for connection, missed in list(self._missed.items()):
            uid = connection.uid
            if not self._budget.may_call(uid, now):
                self._missed[connection] += 1
                continue
            begin = time.thread_time()
            if uid not in texts:
                texts[uid] = json.dumps(fields_of(self._record_for(uid, log)))
            times = f'"realtime_usec": {time.time_ns() // 1000}, "monotonic_usec": {int(now * 1e6)}'
            parameters = f'{{{times}, "missed": {missed}, "fields": {texts[uid]}}}'
            self._socket.stream(connection, f'{{"continues": true, "parameters": {parameters}}}\0'.encode())
            self._missed[connection] = 0
            self._budget.spend(uid, time.thread_time() - begin, now)

    def _record_for(self, uid: int, log: Log) -> Record:
        if uid == 0 or log.about is None:
            return log.record
        return public_record(log.record, log.about, log.subject, uid, self._is_secret)

    def _is_secret(self, file: str) -> bool:
        """Return whether users cannot read a file; those without a directory are indexes, which are public."""
        return file.startswith("/") and bool(secret_files([file], self._root))

    def _forget(self) -> None:
        """Forget callers that have disconnected."""
        connected = self._socket.connections
        self._missed = {each: missed for each, missed in self._missed.items() if each in connected}


def fields_of(record: Record) -> dict[str, list[str]]:
    """Return all fields of a record by name, in the order of the journal."""
    fields = {
        "MESSAGE": [record.message],
        "PRIORITY": [str(record.priority)],
        "MESSAGE_ID": [record.message_id],
    }
    for name, value in record.fields:
        fields.setdefault(name, []).append(value)
    return fields
