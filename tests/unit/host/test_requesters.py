"""The process that reads /proc for the daemon, and the daemon's questions: real connections, a played /proc."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.dataclass import dataclass, replace
from kmodd.host import process_reader, requesters
from kmodd.host.process_reader import numbered, pack, serve, unpack
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


@dataclass(slots=True)
class Clock:
    """Stands still but for the test."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    it = Clock()
    monkeypatch.setattr(requesters, "time", it)
    return it


@dataclass(slots=True)
class Slow:
    """The only process, whose answers the test sends."""

    asked: Requesters
    theirs: socket.socket


@pytest.fixture
def slow() -> Iterator[Slow]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.send(process_reader.READY)
    it = Slow(Requesters(lambda: ours, restarts=False), theirs)
    with theirs:
        yield it
        it.asked.close()


@contextlib.contextmanager
def answering(theirs: socket.socket, *packets: bytes) -> Iterator[None]:
    """The process answers the next question with these packets."""

    def answer() -> None:
        theirs.recv(100)
        for packet in packets:
            theirs.send(packet)

    thread = threading.Thread(target=answer)
    thread.start()
    yield
    thread.join(30)


def is_readable(asked: Requesters, seconds: float = 30) -> bool:
    return bool(select.select([asked], [], [], seconds)[0])


def problem(why: str) -> str:
    return f"Failed to ask the reader of /proc: {why}; requesters are unknown"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    played(tmp_path)
    it = Server(tmp_path)
    yield it
    it.close()


def test_a_requester_is_what_the_other_process_has_read(server: Server) -> None:
    asked = server.asking()
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


def test_a_process_that_has_ended_is_replaced_within_the_question(server: Server) -> None:
    asked = server.asking()
    assert asked.requester_of(179, ASKED_NS, 0.0) == WHO
    server.end()
    assert asked.requester_of(179, ASKED_NS, 0.0) == WHO
    assert len(server.started) == 2


def test_a_process_that_ends_is_replaced_before_the_next_question(server: Server) -> None:
    """The loop waits for its end as for its other sources. It is a problem until the next one has started."""
    asked = server.asking()
    assert asked.requester_of(179, ASKED_NS, 0.0) == WHO
    assert not is_readable(asked, 0), "the control: there is nothing to do"
    server.end()
    assert is_readable(asked)
    asked.receive()
    assert len(server.started) == 2
    assert asked.check(time.monotonic()) == asked.problem == problem("it has ended")
    assert is_readable(asked), "the new one has started"
    asked.receive()
    assert asked.problem == ""


def test_a_process_that_ends_at_once_is_started_with_growing_pauses(clock: Clock) -> None:
    attempts: list[float] = []

    def connect() -> socket.socket:
        attempts.append(clock.now)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.close()
        return ours

    asked = Requesters(connect)
    for _ in range(300):
        assert asked.requester_of(179, ASKED_NS, 0.0) is None
        assert asked.check(clock.now) == problem("it has ended")
        clock.now += 0.5
    pauses = [after - before for before, after in itertools.pairwise(attempts)]
    assert pauses == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
    asked.close()


def test_an_answer_ends_the_growth_of_pauses(server: Server) -> None:
    asked = server.asking()
    for _ in range(5):
        assert asked.requester_of(179, ASKED_NS, 0.0) == WHO
        server.end()
    assert asked.requester_of(179, ASKED_NS, 0.0) == WHO


def test_the_loop_wakes_for_the_next_attempt(clock: Clock) -> None:
    failures = [OSError(errno.ECONNREFUSED, "Connection refused")] * 2
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def connect() -> socket.socket:
        if failures:
            raise failures.pop()
        return ours

    asked = Requesters(connect)
    assert asked.deadline(clock.now) == clock.now
    assert asked.check(clock.now) == problem("Connection refused")
    due = asked.deadline(clock.now)
    assert due == clock.now + 1.0
    clock.now = due
    asked.check(clock.now)
    with theirs:
        theirs.send(process_reader.READY)
        asked.receive()
        assert (asked.problem, asked.deadline(clock.now)) == ("", None)
        asked.close()


def test_a_late_answer_is_not_taken_for_that_to_the_next_question(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is the process lost for it, which without systemd is the only one."""
    assert slow.asked.requester_of(179, ASKED_NS, 0.0) is None
    assert slow.theirs.recv(100) == process_reader.question(1, 179, ASKED_NS, 0.0)
    monkeypatch.setattr(requesters, "WAIT", 30.0)
    late = numbered(1, pack(replace(WHO, uid=0)))
    with answering(slow.theirs, late, numbered(2, pack(WHO))):
        while (who := slow.asked.requester_of(179, ASKED_NS, 0.0)) is None:
            pass  # until the second is over in which the first has used up the time
    assert (who, slow.asked.problem) == (WHO, "")


def test_a_process_that_does_not_answer_is_a_problem_until_it_does(slow: Slow) -> None:
    began = time.monotonic()
    assert slow.asked.requester_of(179, ASKED_NS, 0.0) is None
    due = slow.asked.deadline(time.monotonic())
    assert due is not None
    assert slow.asked.check(due - 0.1) == ""
    assert slow.asked.check(due) == problem("it does not answer")
    assert slow.asked.deadline(due) is None
    assert due >= began + requesters.SILENCE
    slow.theirs.send(numbered(1, process_reader.UNKNOWN))
    assert is_readable(slow.asked)
    slow.asked.receive()
    assert slow.asked.check(due) == ""


def test_a_process_of_systemd_that_does_not_answer_is_replaced(server: Server) -> None:
    server.answers = False
    asked = server.asking()
    assert asked.requester_of(179, ASKED_NS, 0.0) is None
    server.answers = True
    asked.check(time.monotonic() + requesters.SILENCE)
    while (who := asked.requester_of(179, ASKED_NS, 0.0)) is None:
        pass  # until the second is over in which the first question has used up the time
    assert who == WHO
    assert len(server.started) == 2


def test_many_questions_wait_less_than_a_second_in_all(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    """The helpers that come meanwhile give up after 2 s. One is passed on: later ones would wait for its answer."""
    began = time.monotonic()
    assert {slow.asked.requester_of(179, ASKED_NS, 0.0) for _ in range(1000)} == {None}
    assert time.monotonic() < began + 1.0
    assert slow.theirs.recv(100) == process_reader.question(1, 179, ASKED_NS, 0.0)
    with pytest.raises(BlockingIOError):
        slow.theirs.recv(100, socket.MSG_DONTWAIT)
    slow.theirs.send(numbered(1, pack(replace(WHO, uid=0))))
    monkeypatch.setattr(requesters, "ENOUGH", 30.0)
    with answering(slow.theirs, numbered(2, pack(WHO))):
        assert slow.asked.requester_of(179, ASKED_NS, 0.0) == WHO


def test_a_process_that_starts_slowly_is_waited_for_less_than_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later questions get no answer at once, until it has started."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    asked = Requesters(lambda: ours)
    began = time.monotonic()
    with theirs:
        assert {asked.requester_of(179, ASKED_NS, 0.0) for _ in range(50)} == {None}
        assert time.monotonic() < began + 1.0
        assert asked.check(began + 2 * requesters.SILENCE) == ""
        assert asked.check(began + 2 * requesters.START) == problem("it does not start")
        theirs.send(process_reader.READY)
        monkeypatch.setattr(requesters, "ENOUGH", 30.0)
        with answering(theirs, numbered(1, pack(WHO))):
            assert asked.requester_of(179, ASKED_NS, 0.0) == WHO
        assert asked.problem == ""
        asked.close()


@pytest.mark.parametrize("packet", [b"x", b"", pack(WHO), b"9" * 5000 + b" -"])
def test_an_invalid_answer_is_a_lost_process(slow: Slow, packet: bytes) -> None:
    slow.theirs.send(packet)
    assert slow.asked.requester_of(179, ASKED_NS, 0.0) is None
    assert slow.asked.problem.startswith("Failed to ask the reader of /proc: it")


def test_without_a_process_nothing_is_known() -> None:
    def connect() -> socket.socket:
        raise FileNotFoundError(2, "No such file or directory")

    asked = Requesters(connect)
    assert asked.problem == problem("No such file or directory")
    assert asked.requester_of(1, time.monotonic_ns(), 0.0) is None
    asked.close()
    assert (asked.check(time.monotonic()), asked.requester_of(1, 0, 0.0)) == ("", None)


def test_wrong_usage_is_one_status() -> None:
    for words in ([], ["--fd"], ["--fd", "x"], ["3"]):
        command = [sys.executable, "-m", "kmodd.cli", "requester", *words]
        done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert (done.returncode, done.stderr.partition("\n")[0]) == (2, "usage: kmodd requester [--fd N]")
