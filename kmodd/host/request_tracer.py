"""Identify the process behind a kernel request from the `module_request` trace event, in kmodd's own tracefs instance.

The event fires in the context of the requester, before the kernel starts the helper. So when the helper connects, the
event is in the trace, and the requester still waits unless it was killed.

Requires root, tracefs (unavailable in lockdown's confidentiality mode) and CAP_SYS_PTRACE (see process.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time

from kmodd.host.process import initial_namespaces, requester_of
from kmodd.kernel.ftrace import (
    ModuleRequested,
    module_requested,
    parse_header_page,
    parse_page,
    parse_request_format,
)
from kmodd.kernel.request_matcher import LATEST_NS, OpenRequests
from kmodd.kernel.requester import Requester

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

TRACEFS: Final = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
"""Mount points of tracefs (Documentation/trace/ftrace.rst), the usual one first."""
INSTANCE: Final = "kmodd"
_EVENT: Final = "events/module/module_request"
_BUFFER_KB: Final = 64
"""KiB for each CPU: a thousand events, while the kernel runs at most 50 helpers at a time."""
_READS: Final = 64
"""Pages read from one CPU at a time, four times its buffer, so that a flood of requests cannot occupy the daemon."""
_SETTINGS: Final = (
    ("buffer_size_kb", str(_BUFFER_KB)),
    (f"{_EVENT}/enable", "1"),
    ("tracing_on", "1"),
)


class ModuleRequests:
    """Matches helpers to requesters. Call `match` once for each helper, before answering it."""

    def __init__(self, tracefs: tuple[str, ...] = TRACEFS, instance: str = INSTANCE, proc: str = "/proc") -> None:
        """Open or create the instance and start tracing. Events that a killed daemon left unread are used.

        Raises OSError if tracefs is missing or not permitted, ParseError if its format is unknown.
        """
        self._proc, self._open = proc, OpenRequests()
        self._initial = initial_namespaces(proc)
        place = next((place for place in tracefs if os.path.isdir(f"{place}/instances")), None)
        if place is None:
            raise FileNotFoundError(errno.ENOENT, "no tracefs with instances", tracefs[0])
        self._folder = f"{place}/instances/{instance}"
        self._pipes: list[int] = []
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._folder)
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        self._layout = parse_header_page(self._read("events/header_page"), sys.byteorder)
        self._format = parse_request_format(self._read(f"{_EVENT}/format"), sys.byteorder)
        if "[boot]" not in self._read("trace_clock"):  # writing it empties the buffer
            self._write("trace_clock", "boot")
        for cpu in sorted(os.listdir(f"{self._folder}/per_cpu")):
            path = f"{self._folder}/per_cpu/{cpu}/trace_pipe_raw"
            self._pipes.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        for name, value in _SETTINGS:
            self._write(name, value)

    def close(self) -> None:
        """Stop tracing and remove the instance, which the kernel keeps while another process reads it."""
        while self._pipes:
            os.close(self._pipes.pop())
        with contextlib.suppress(OSError):
            os.rmdir(self._folder)

    def match(self, name: str) -> Requester | None:
        """Return the requester on whose behalf the helper asks for `name`; None if unknown (see request_matcher.py).

        name: the helper's argument, unchanged, with surrogate escapes. Never raises.
        """
        self.drain()
        return self._open.match(name, _now_ns())

    def drain(self) -> None:
        """Read the events since the last call and identify their requesters. Never raises."""
        now = _now_ns()
        events = sorted(self._events(now), key=lambda event: event.timestamp_ns)
        for event in events:
            if event.timestamp_ns + LATEST_NS > now:
                requester = requester_of(event.tid, event.timestamp_ns, self._initial, self._proc)
                self._open.add(event, requester, now)

    def _events(self, now: int) -> Iterator[ModuleRequested]:
        for pipe in self._pipes:
            for _ in range(_READS):
                try:
                    data = os.read(pipe, self._layout.size)
                except BlockingIOError:
                    break
                except OSError:
                    self._open.lost(now)
                    break
                if not data:
                    break  # there is an event that its writer has not completed yet
                page = parse_page(data, self._layout)
                if page.missed or page.damaged:
                    # Overwritten events are older than the first one left.
                    self._open.lost(page.events[0].timestamp_ns if page.events and not page.damaged else now)
                for event in page.events:
                    if (request := module_requested(event, self._format)) is not None:
                        yield request

    def _read(self, name: str) -> str:
        with open(f"{self._folder}/{name}", encoding="ascii", errors="replace") as file:
            return file.read()

    def _write(self, name: str, value: str) -> None:
        fd = os.open(f"{self._folder}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode("ascii"))
        finally:
            os.close(fd)


def _now_ns() -> int:
    """Return CLOCK_BOOTTIME in ns, the clock of the trace and of the threads' start times."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
