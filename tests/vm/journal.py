"""The guest's journal as it is written: records as dictionaries, and a way to wait for one."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from tests.vm import VmError

#: Field → its value, or its values where a record repeats the field.
Record = dict[str, "str | list[str]"]

_BINARY_ITEM: Final = int


def text(record: Record, field: str) -> str:
    """The field's value, the first one if it is repeated, "" if it is not there."""
    value = record.get(field, "")
    return value if isinstance(value, str) else value[0]


def texts(record: Record, field: str) -> list[str]:
    """All values of a field."""
    value = record.get(field, [])
    return [value] if isinstance(value, str) else value


class Journal:
    """Collects records from a stream of JSON lines in a thread of its own."""

    def __init__(self, on_record: Callable[[Record], None] | None = None) -> None:
        """`on_record` is called for each record, in the collecting thread."""
        self.records: list[Record] = []
        self._on_record = on_record
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._error = ""

    def start(self, stream: socket.socket) -> None:
        """Collect from `stream` until its end."""
        self._thread = threading.Thread(target=self._collect, args=(stream,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Wait for the thread; the stream must have ended."""
        if self._thread is not None:
            self._thread.join(5.0)

    def mark(self) -> int:
        """A place in the journal: `since` for later waits."""
        with self._changed:
            return len(self.records)

    def after(self, since: int) -> list[Record]:
        """Records that came after the mark."""
        with self._changed:
            return self.records[since:]

    def wait_for(self, wanted: Callable[[Record], bool], timeout: float, since: int = 0) -> Record:
        """The first record after the mark for which `wanted` is true; VmError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        seen = since
        with self._changed:
            while True:
                for record in self.records[seen:]:
                    if wanted(record):
                        return record
                seen = len(self.records)
                if self._error or not self._changed.wait(deadline - time.monotonic()):
                    said = "\n".join(text(record, "MESSAGE") for record in self.records[since:][-20:])
                    why = self._error or f"no such record in {timeout:.0f} s"
                    raise VmError(f"journal: {why}; since the mark:\n{said or '(nothing)'}")

    def _collect(self, stream: socket.socket) -> None:
        rest = b""
        while True:
            try:
                data = stream.recv(65536)
            except OSError:
                return
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            record = {name: _decode(value) for name, value in json.loads(line).items()}
        except (ValueError, AttributeError):
            if line.strip():
                self._error = f"the guest wrote something that is no record: {line[:200]!r}"
            return
        with self._changed:
            self.records.append(record)
            self._changed.notify_all()
        if self._on_record is not None:
            self._on_record(record)


def _decode(value: object) -> str | list[str]:
    """journalctl's JSON: a string, an array of numbers (bytes that are no text), or an array of either."""
    if isinstance(value, list):
        if value and all(isinstance(item, _BINARY_ITEM) for item in value):
            return bytes(value).decode("utf-8", "surrogateescape")
        return [item if isinstance(item, str) else "".join(_decode(item)) for item in value]
    return "" if value is None else str(value)
