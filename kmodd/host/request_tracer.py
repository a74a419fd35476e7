"""Who made the kernel ask: its `module_request` events, out of a tracefs instance of our own.

The event fires in the requester's context, before the kernel starts the helper. So whoever empties the trace when the
helper asks finds the event there, and the requester still waiting (unless it was killed meanwhile).

Needs root, a tracefs (not in lockdown's confidentiality mode) and CAP_SYS_PTRACE (see process.py).
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
"""Where it may be mounted (Documentation/trace/ftrace.rst), the usual place first."""
INSTANCE: Final = "kmodd"
_EVENT: Final = "events/module/module_request"
_BUFFER_KB: Final = 64
"""For each CPU: a thousand events, and the kernel has 50 helpers at a time."""
_READS: Final = 64
"""Pages that are read of one CPU at a time, four times its buffer: whoever asks faster than we read stops nothing."""
_SETTINGS: Final = (
    ("buffer_size_kb", str(_BUFFER_KB)),
    (f"{_EVENT}/enable", "1"),
    ("tracing_on", "1"),
)


class ModuleRequests:
    """Knows who asked. For each helper that asks call `match` once, before it gets its answer."""

    def __init__(self, tracefs: tuple[str, ...] = TRACEFS, instance: str = INSTANCE, proc: str = "/proc") -> None:
        """Start to listen. What a killed daemon left is used on: what it had not read yet counts.

        Raises OSError where there is no tracefs or it may not be used, ParseError where this kernel's is another.
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
        if "[boot]" not in self._read("trace_clock"):  # setting it empties the buffer
            self._write("trace_clock", "boot")
        for cpu in sorted(os.listdir(f"{self._folder}/per_cpu")):
            path = f"{self._folder}/per_cpu/{cpu}/trace_pipe_raw"
            self._pipes.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        for name, value in _SETTINGS:
            self._write(name, value)

    def close(self) -> None:
        """Listen no longer and remove the instance; the kernel keeps it while somebody else reads there."""
        while self._pipes:
            os.close(self._pipes.pop())
        with contextlib.suppress(OSError):
            os.rmdir(self._folder)

    def match(self, name: str) -> Requester | None:
        """Whose request the helper that asks for `name` stands for; None: unknown (see open_requests.py).

        `name` is the helper's argument as it came, with surrogate escapes. Never raises.
        """
        self.drain()
        return self._open.match(name, _now_ns())

    def drain(self) -> None:
        """Read what the kernel announced since, and look up who that was. Never raises."""
        now = _now_ns()
        events = sorted(self._events(now), key=lambda event: event.timestamp_ns)
        for event in events:
            if event.timestamp_ns + LATEST_NS > now:
                who = requester_of(event.tid, event.timestamp_ns, self._initial, self._proc)
                self._open.add(event, who, now)

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
                    break  # something is there, but its writer is not done with it
                page = parse_page(data, self._layout)
                if page.missed or page.damaged:
                    # Overwritten ones are older than the first that is left.
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
    """The trace's clock, which is also that of the threads' start."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
