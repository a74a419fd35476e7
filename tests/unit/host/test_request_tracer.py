"""The tracefs instance, played: pipes in place of the kernel's, a played /proc. The real one is in tests/vm."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from kmodd.errors import ParseError
from kmodd.host.request_tracer import ModuleRequests
from kmodd.kernel.ftrace import TraceEvent
from tests.pages import FORMAT, HEADER_PAGE, MISSED, page, request_event, written
from tests.played_proc import played

CPUS = 2


class PlayedTrace:
    """A tracefs with one instance that a killed daemon left, and a /proc with the thread 179."""

    def __init__(self, folder: Path) -> None:
        self.place, self.proc = folder / "tracing", folder / "proc"
        self.instance = self.place / "instances/kmodd"
        for name, text in {
            "events/header_page": HEADER_PAGE,
            "events/module/module_request/format": FORMAT,
            "events/module/module_request/enable": "0",
            "trace_clock": "[local] global boot",
            "buffer_size_kb": "1408",
            "tracing_on": "1",
        }.items():
            path = self.instance / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.pipes = []
        for cpu in range(CPUS):
            path = self.instance / f"per_cpu/cpu{cpu}/trace_pipe_raw"
            path.parent.mkdir(parents=True)
            os.mkfifo(path)
            self.pipes.append(os.open(path, os.O_RDWR | os.O_NONBLOCK))
        self.now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        played(self.proc, start=0)

    def listen(self) -> ModuleRequests:
        return ModuleRequests((str(self.place / "nowhere"), str(self.place)), proc=str(self.proc))

    def happen(self, cpu: int, tid: int, name: bytes, after: int = 0, flags: int = 0) -> None:
        now = self.now + after
        os.write(self.pipes[cpu], page(now, written(now, [TraceEvent(now, request_event(tid, name))]), flags))


@pytest.fixture
def trace(tmp_path: Path) -> PlayedTrace:
    return PlayedTrace(tmp_path)


def test_how_the_instance_is_set(trace: PlayedTrace) -> None:
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
    (trace.instance / "trace_clock").write_text("local [boot]")
    trace.listen()
    assert (trace.instance / "trace_clock").read_text() == "local [boot]"


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
    assert trace.listen().match("net-pf-9") is not None


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
    assert len(os.listdir("/proc/self/fd")) == before - CPUS


def test_no_tracefs(tmp_path: Path) -> None:
    played(tmp_path / "proc")
    with pytest.raises(FileNotFoundError, match="no tracefs"):
        ModuleRequests((str(tmp_path / "tracing"),), proc=str(tmp_path / "proc"))


def test_another_kernel_s_format(trace: PlayedTrace) -> None:
    (trace.instance / "events/module/module_request/format").write_text("ID: 3\n")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ParseError):
        trace.listen()
    assert len(os.listdir("/proc/self/fd")) == before
