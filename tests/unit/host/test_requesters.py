"""The process that reads /proc for the daemon, and the daemon's questions: real connections, a played /proc."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.dataclass import replace
from kmodd.host import process_reader, requesters
from kmodd.host.process_reader import pack, serve, unpack
from kmodd.host.requesters import Requesters
from tests.played_proc import WHO, played

ROOT = Path(__file__).parents[3]
ASKED_NS = 1000 * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class Server:
    """Processes to ask, each a thread here; `connect` starts one."""

    def __init__(self, proc: Path) -> None:
        self._proc = str(proc)
        self.started: list[socket.socket] = []
        self._asking: list[Requesters] = []
        self._threads: list[threading.Thread] = []
        self.answers = True

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.started.append(theirs)
        if self.answers:
            thread = threading.Thread(target=serve, args=(theirs.fileno(), self._proc))
            self._threads.append(thread)
            thread.start()
        else:
            theirs.send(process_reader.READY)
        return ours

    def asking(self) -> Requesters:
        """The daemon's side."""
        self._asking.append(Requesters(self.connect))
        return self._asking[-1]

    def end(self) -> None:
        """The process that runs ends."""
        self.started[-1].shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for asking in self._asking:
            asking.close()
        for each in self.started:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)
        for each in self.started:
            each.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    played(tmp_path)
    it = Server(tmp_path)
    yield it
    it.close()


def test_a_requester_is_what_the_other_process_has_read(server: Server) -> None:
    asked = server.asking()
    asked.check()
    assert [asked.requester_of(179, ASKED_NS, 0.0) for _ in range(3)] == [WHO] * 3
    assert asked.requester_of(180, ASKED_NS, 0.0) is None, "there is no such thread"
    assert asked.requester_of(179, 0, 0.0) is None, "it started later"
    assert asked.requester_of(179, ASKED_NS, 0.0) == WHO
    assert len(server.started) == 1


@pytest.mark.parametrize(
    "who",
    [WHO, replace(WHO, loginuid=None, exe="", unit="", command=7), replace(WHO, exe="/x\udcff\n", container=True)],
)
def test_each_field_arrives_unchanged(who: object) -> None:
    assert unpack(pack(who)) == who  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", [b"-", b"", b"1\0a", pack(WHO) + b"\0", b"x" + pack(WHO), b"\xff" * 70000])
def test_any_other_answer_is_unknown(answer: bytes) -> None:
    assert unpack(answer) is None


def test_a_process_that_has_ended_is_replaced(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requesters, "RETRY", 0.0)
    asked = server.asking()
    assert asked.requester_of(179, ASKED_NS, 0.0) == WHO
    server.end()
    assert asked.requester_of(179, ASKED_NS, 0.0) is None
    assert asked.requester_of(179, ASKED_NS, 0.0) == WHO
    assert len(server.started) == 2


def test_no_second_one_is_started_at_once(server: Server) -> None:
    asked = server.asking()
    server.end()
    assert [asked.requester_of(179, ASKED_NS, 0.0) for _ in range(3)] == [None] * 3
    assert len(server.started) == 1


def test_an_answer_that_is_late_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not taken for the answer to the next question."""
    monkeypatch.setattr(requesters, "RETRY", 0.0)
    server.answers = False
    asked = server.asking()
    assert asked.requester_of(179, ASKED_NS, 0.0) is None
    server.answers = True
    assert server.started[0].recv(100) == process_reader.question(179, ASKED_NS, 0.0)
    with pytest.raises(BrokenPipeError):
        server.started[0].send(pack(replace(WHO, uid=0)))
    assert asked.requester_of(179, ASKED_NS, 0.0) == WHO


def test_a_process_that_starts_slowly_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later questions get no answer at once, until it has started."""
    monkeypatch.setattr(requesters, "START_LIMIT", 0.1)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    asked = Requesters(lambda: ours)
    with theirs:
        assert asked.requester_of(179, ASKED_NS, 0.0) is None
        monkeypatch.setattr(requesters, "START_LIMIT", -1.0)
        assert asked.requester_of(179, ASKED_NS, 0.0) is None
        theirs.send(process_reader.READY)
        theirs.send(pack(WHO))
        assert asked.requester_of(179, ASKED_NS, 0.0) == WHO
        asked.close()


def test_without_a_process_nothing_is_known() -> None:
    def connect() -> socket.socket:
        raise FileNotFoundError(2, "No such file or directory")

    asked = Requesters(connect)
    with pytest.raises(FileNotFoundError):
        asked.check()
    assert asked.requester_of(1, time.monotonic_ns(), 0.0) is None
    asked.close()


def test_wrong_usage_is_one_status() -> None:
    for words in ([], ["--fd"], ["--fd", "x"], ["3"]):
        command = [sys.executable, "-m", "kmodd.cli", "requester", *words]
        done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert (done.returncode, done.stderr.partition("\n")[0]) == (2, "usage: kmodd requester [--fd N]")
