"""Records on their way to journald: systemd.io/JOURNAL_NATIVE_PROTOCOL."""

from __future__ import annotations

import io
import socket
from pathlib import Path

from kmodd.host.journal import LIMIT, JournalSocket, TextJournal, datagram
from kmodd.planning.record import DEBUG, INFO, JOURNAL_GAP, Record

SAID = Record("0" * 32, INFO, "Loaded x", (("KMODD_MODULE", "x"), ("KMODD_DEVPATH", "/a"), ("KMODD_DEVPATH", "/b")))


def listener(path: Path) -> socket.socket:
    reader = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    reader.bind(str(path))
    reader.settimeout(30)
    return reader


def test_fields_are_lines_and_a_name_may_repeat() -> None:
    assert datagram(SAID) == (
        b"MESSAGE=Loaded x\nPRIORITY=6\nMESSAGE_ID=" + b"0" * 32 + b"\nSYSLOG_IDENTIFIER=kmodd\n"
        b"KMODD_MODULE=x\nKMODD_DEVPATH=/a\nKMODD_DEVPATH=/b\n"
    )


def test_a_value_of_two_lines_has_its_length_before_it() -> None:
    """A newline in a name must not forge a field of its own."""
    forged = datagram(Record("0" * 32, INFO, "m", (("KMODD_ALIAS", "x\nKMODD_MODULE=evil"),)))
    assert forged.endswith(b"\nKMODD_ALIAS\n" + (19).to_bytes(8, "little") + b"x\nKMODD_MODULE=evil\n")


def test_a_message_is_one_line_of_printable_text() -> None:
    """`journalctl -o cat` and a terminal show it as it is: a name must not forge a record. Its field has the name."""
    forged = Record("0" * 32, INFO, "No module for a\x1b[2J\nLoaded b", (("KMODD_ALIAS", "a\x1b[2J"),))
    assert datagram(forged).startswith(b"MESSAGE=No module for a\\x1b[2J\\nLoaded b\nPRIORITY=6\n")
    assert b"\nKMODD_ALIAS=a\x1b[2J\n" in datagram(forged)
    stream = io.StringIO()
    TextJournal(stream, INFO).write(forged)
    assert stream.getvalue() == "info    No module for a\\x1b[2J\\nLoaded b\n"


def test_records_arrive(tmp_path: Path) -> None:
    with listener(tmp_path / "socket") as reader:
        journal = JournalSocket(str(tmp_path / "socket"))
        journal.write(SAID)
        assert reader.recv(65536) == datagram(SAID)
        journal.close()


def test_a_blocked_journald_loses_records_and_gets_their_count(tmp_path: Path) -> None:
    """The backlog is bounded; lost records are counted and the count is sent later."""
    path = tmp_path / "socket"
    journal = JournalSocket(str(path))
    for _ in range(LIMIT + 25):
        journal.write(SAID)  # no listener yet
    assert journal.lost == 25
    assert journal.flush() is not None
    with listener(path) as reader:
        told = []
        while journal.flush() is not None:
            told.append(reader.recv(65536))
        reader.setblocking(False)
        try:
            while True:
                told.append(reader.recv(65536))
        except BlockingIOError:
            pass
    assert len(told) == LIMIT + 1
    assert told[:-1] == [datagram(SAID)] * LIMIT
    assert b"25 records lost" in told[-1]
    assert JOURNAL_GAP.encode() in told[-1]
    journal.close()


def test_text_for_people_leaves_debug_out() -> None:
    stream = io.StringIO()
    journal = TextJournal(stream, INFO)
    journal.write(SAID)
    journal.write(Record("0" * 32, DEBUG, "detail"))
    assert stream.getvalue() == "info    Loaded x\n"
