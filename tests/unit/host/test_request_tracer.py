"""The tracefs instance, played: pipes in place of the kernel's, a played /proc. The real one is in tests/vm."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kmodd.errors import ParseError
from kmodd.host.process import requester_of
from kmodd.host.request_tracer import ModuleRequests
from kmodd.kernel.ftrace import TraceEvent
from kmodd.kernel.requester import Requester
from tests.pages import EXEC_FORMAT, FORMAT, HEADER_PAGE, MISSED, exec_event, page, request_event, written
from tests.played_proc import played

CPUS = 2
SEC = 1_000_000_000


class PlayedTrace:
    """A tracefs with the instances that a killed daemon left, and a /proc with the thread 179 of process 178."""

    def __init__(self, folder: Path) -> None:
        self.place, self.proc = folder / "tracing", folder / "proc"
        self.instance = self.place / "instances/kmodd"
        self.pipes = self._make(self.instance, "module/module_request", FORMAT)
        self._execs = self._make(self.place / "instances/kmodd-exec", "sched/sched_process_exec", EXEC_FORMAT)
        self.now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self.initial = played(self.proc, start=0)

    @staticmethod
    def _make(instance: Path, event: str, layout: str) -> list[int]:
        """Make an instance; returns the ends of its pipes to write to."""
        for name, text in {
            "events/header_page": HEADER_PAGE,
            f"events/{event}/format": layout,
            f"events/{event}/enable": "1",
            "trace_clock": "local global [boot]",
            "buffer_size_kb": "1408",
            "tracing_on": "1",
        }.items():
            path = instance / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        pipes = []
        for cpu in range(CPUS):
            path = instance / f"per_cpu/cpu{cpu}/trace_pipe_raw"
            path.parent.mkdir(parents=True)
            os.mkfifo(path)
            pipes.append(os.open(path, os.O_RDWR | os.O_NONBLOCK))
        return pipes

    def look(self, tid: int, asked_ns: int, until: float) -> Requester | None:
        """In the place of the process that reads /proc."""
        return requester_of(tid, asked_ns, self.initial, str(self.proc), until)

    def listen(
        self, look: Callable[[int, int, float], Requester | None] | None = None, *, is_asked: bool = False
    ) -> ModuleRequests:
        places = (str(self.place / "nowhere"), str(self.place))
        return ModuleRequests(look or self.look, places, is_asked=lambda: is_asked)

    def reset(self, *instances: str) -> None:
        """These have not recorded so far."""
        for instance in instances:
            for path in (self.place / "instances" / instance).glob("events/*/*/enable"):
                path.write_text("0")
            (self.place / "instances" / instance / "trace_clock").write_text("[local] global boot")

    def happen(self, cpu: int, tid: int, name: bytes, after: int = 0, flags: int = 0) -> None:
        now = self.now + after
        os.write(self.pipes[cpu], page(now, written(now, [TraceEvent(now, request_event(tid, name))]), flags))

    def execute(self, pid: int, after: int = 0, flags: int = 0) -> None:
        """The process executes a program; with MISSED, earlier ones were lost."""
        now = self.now + after
        os.write(self._execs[1], page(now, written(now, [TraceEvent(now, exec_event(pid, pid + 1))]), flags))


@pytest.fixture
def trace(tmp_path: Path) -> PlayedTrace:
    return PlayedTrace(tmp_path)


def test_how_the_instance_is_set(trace: PlayedTrace) -> None:
    trace.reset("kmodd")
    trace.listen()
    for name, value in {
        "events/module/module_request/enable": "1",
        "trace_clock": "boot",
        "buffer_size_kb": "64",
        "tracing_on": "1",
    }.items():
        assert (trace.instance / name).read_text().startswith(value)


def test_a_clock_that_is_right_is_left_alone(trace: PlayedTrace) -> None:
    """Setting it would empty the buffer."""
    trace.listen()
    assert (trace.instance / "trace_clock").read_text() == "local global [boot]"


def test_events_of_all_cpus(trace: PlayedTrace) -> None:
    requests = trace.listen()
    trace.happen(1, 179, b"net-pf-9")
    trace.happen(0, 179, b"fs-\xff")
    for name in ("net-pf-9", "fs-\udcff"):
        who = requests.match(name)
        assert who is not None
        assert who.pid == 178
        assert requests.match(name) is None


def test_an_event_that_a_killed_daemon_had_not_read(trace: PlayedTrace) -> None:
    trace.happen(0, 179, b"net-pf-9")
    assert trace.listen(is_asked=True).match("net-pf-9") is not None


@pytest.mark.parametrize(
    ("new", "is_asked", "known"),
    [
        (("kmodd", "kmodd-exec"), True, False),
        (("kmodd", "kmodd-exec"), False, True),
        (("kmodd",), True, False),
        ((), True, True),
    ],
)
def test_a_helper_that_may_belong_to_a_request_before_the_trace_is_unknown(
    trace: PlayedTrace, new: tuple[str, ...], is_asked: bool, known: bool
) -> None:
    """A request of another process for the same name, in the trace, is not its own."""
    trace.reset(*new)
    requests = trace.listen(is_asked=is_asked)
    trace.happen(0, 179, b"net-pf-9", after=SEC)
    assert (requests.match("net-pf-9") is not None) is known


def test_programs_before_a_new_trace_may_have_been_executed(trace: PlayedTrace) -> None:
    trace.reset("kmodd-exec")
    requests = trace.listen(is_asked=True)
    trace.happen(0, 179, b"net-pf-9")
    trace.happen(1, 179, b"net-pf-38", after=SEC)
    assert requests.match("net-pf-9") is None, "before the trace of programs began"
    assert requests.match("net-pf-38") is not None


def test_a_dead_thread_is_unknown(trace: PlayedTrace) -> None:
    requests = trace.listen()
    trace.happen(0, 180, b"net-pf-9")
    assert requests.match("net-pf-9") is None


def test_old_events_have_no_requester(trace: PlayedTrace) -> None:
    requests = trace.listen()
    trace.happen(0, 179, b"net-pf-9", after=-61_000_000_000)
    assert requests.match("net-pf-9") is None
    trace.happen(0, 179, b"net-pf-9", after=-50_000_000_000)
    assert requests.match("net-pf-9") is not None


def test_lost_events(trace: PlayedTrace) -> None:
    requests = trace.listen()
    trace.happen(0, 179, b"net-pf-9", flags=MISSED, after=-61_000_000_000)
    trace.happen(0, 179, b"net-pf-9")
    assert requests.match("net-pf-9") is not None  # what was lost is too old to matter
    trace.happen(0, 179, b"net-pf-9", flags=MISSED)
    assert requests.match("net-pf-9") is None
    trace.happen(0, 179, b"net-pf-9")
    assert requests.match("net-pf-9") is None


MSEC = 1_000_000


@pytest.mark.parametrize(
    ("pid", "after", "known"), [(179, MSEC, False), (179, 0, False), (179, -MSEC, True), (178, MSEC, True)]
)
def test_a_process_that_has_executed_a_program_since_is_unknown(
    trace: PlayedTrace, pid: int, after: int, known: bool
) -> None:
    """Its thread may have taken over number and start time of the one that asked, and ask on its own."""
    requests = trace.listen()
    trace.happen(0, 179, b"net-pf-9")
    trace.execute(pid, after)
    assert (requests.match("net-pf-9") is not None) is known


@pytest.mark.parametrize(("after", "known"), [(MSEC, False), (-MSEC, True)])
def test_lost_programs_make_earlier_requests_unknown(trace: PlayedTrace, after: int, known: bool) -> None:
    requests = trace.listen()
    trace.happen(0, 179, b"net-pf-9")
    trace.execute(5, after, MISSED)
    assert (requests.match("net-pf-9") is not None) is known


def test_a_program_that_was_read_with_an_earlier_request_counts(trace: PlayedTrace) -> None:
    requests = trace.listen()
    trace.happen(0, 179, b"fs-x", after=-2 * MSEC)
    trace.execute(179, MSEC)
    requests.drain()
    trace.happen(0, 179, b"net-pf-9")
    assert requests.match("net-pf-9") is None


def test_a_thread_that_has_asked_again_is_unknown_for_the_first_request(trace: PlayedTrace) -> None:
    """It may have executed a program that asks on its own; that one is known."""
    requests = trace.listen()
    trace.happen(0, 179, b"net-pf-38")
    trace.happen(1, 179, b"net-pf-9", after=MSEC)
    assert requests.match("net-pf-38") is None
    assert requests.match("net-pf-9") is not None


def test_a_request_during_the_look_at_its_thread_counts_as_the_second(trace: PlayedTrace) -> None:
    """The trace is read after the thread was seen waiting, too."""
    looks: list[int] = []

    def look(tid: int, asked_ns: int, until: float) -> Requester | None:
        if not looks:
            trace.happen(1, 179, b"net-pf-9", after=MSEC)
        looks.append(tid)
        return trace.look(tid, asked_ns, until)

    requests = trace.listen(look)
    trace.happen(0, 179, b"net-pf-38")
    assert requests.match("net-pf-38") is None
    assert requests.match("net-pf-9") is not None


def test_a_thread_that_does_not_wait_is_unknown(trace: PlayedTrace) -> None:
    requests = trace.listen()
    (trace.proc / "179/wchan").write_text("do_epoll_wait")
    trace.happen(0, 179, b"net-pf-9")
    assert requests.match("net-pf-9") is None


def test_a_damaged_page(trace: PlayedTrace) -> None:
    requests = trace.listen()
    trace.happen(0, 179, b"net-pf-9")
    os.write(trace.pipes[0], page(trace.now, b"\1"))
    assert requests.match("net-pf-9") is None


def test_close(trace: PlayedTrace) -> None:
    requests = trace.listen()
    before = len(os.listdir("/proc/self/fd"))
    requests.close()
    requests.close()
    assert len(os.listdir("/proc/self/fd")) == before - 2 * CPUS


def test_no_tracefs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no tracefs"):
        ModuleRequests(lambda *_: None, (str(tmp_path / "tracing"),))


def test_another_kernel_s_format(trace: PlayedTrace) -> None:
    (trace.instance / "events/module/module_request/format").write_text("ID: 3\n")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ParseError):
        trace.listen()
    assert len(os.listdir("/proc/self/fd")) == before
