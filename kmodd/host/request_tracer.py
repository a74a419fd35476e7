"""Identify the process behind a kernel request from the `module_request` trace event, in kmodd's own tracefs instance.

The event fires in the context of the requester, before the kernel starts the helper. So when the helper connects, the
event is in the trace, and the requester still waits unless it was killed.

A thread that executes a program takes over number and start time of the thread that its process began with, which may
have asked before: then /proc shows a process of another user (set-user-ID programs). So a requester is known only while
the kernel shows it in the call that waits for the helper, if its process has executed nothing since the event and has
not asked again. Both are in traces, which are read after the thread was seen waiting.

Requires root and tracefs (unavailable in lockdown's confidentiality mode). /proc is read by a process with
CAP_SYS_PTRACE (requesters.py), while the thread waits: the answer comes before the traces are read again.
"""

from __future__ import annotations

import errno
import os
import time

from kmodd.host.helper_socket import is_helper_set
from kmodd.host.trace_instance import TraceInstance
from kmodd.kernel.ftrace import (
    ModuleRequested,
    executed,
    module_requested,
    page_start,
    parse_exec_format,
    parse_page,
    parse_request_format,
)
from kmodd.kernel.request_matcher import LATEST_NS, OpenRequests
from kmodd.kernel.requester import Requester

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

TRACEFS: Final = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
"""Mount points of tracefs (Documentation/trace/ftrace.rst), the usual one first."""
INSTANCE: Final = "kmodd"
_REQUEST: Final = "events/module/module_request"
_EXEC: Final = "events/sched/sched_process_exec"
_REQUEST_KB: Final = 64
"""KiB for each CPU: a thousand events, while the kernel runs at most 50 helpers at a time."""
_EXEC_KB: Final = 16
"""KiB for each CPU: some 300 events. Those since the oldest open request matter, which is milliseconds old."""
_PATIENCE: Final = 0.005
"""Seconds that `drain` waits, in all, for threads that the kernel has not put to sleep yet."""


class _Execs:
    """The programs executed lately."""

    def __init__(self, instance: TraceInstance) -> None:
        self._instance = instance
        self._order = instance.layout.order
        self._format = parse_exec_format(instance.format, self._order)
        self._pages: tuple[list[bytes], list[bytes]] = ([], [])
        """Pages of the last two calls of `read`: a request may come between the looks at requests and at programs."""
        self._lost_ns = _now_ns() if instance.is_new else 0
        """Events up to this time were lost, or not recorded."""

    def read(self, now_ns: int) -> None:
        """Read the events so far."""
        new = []
        for data in self._instance.pages():
            if data is None or len(data) < self._instance.layout.data.offset:
                self._lost_ns = now_ns
                continue
            start_ns, missed = page_start(data, self._instance.layout)
            if missed:
                self._lost_ns = max(self._lost_ns, start_ns)
            new.append(data)
        self._pages = (self._pages[1], new)

    def may_have_executed(self, tid: int, since_ns: int) -> bool:
        """Return whether the process has executed a program since then, or may have as events were lost."""
        if since_ns <= self._lost_ns:
            return True
        number = tid.to_bytes(4, self._order)
        return any(number in data and self._has(data, tid, since_ns) for pages in self._pages for data in pages)

    def _has(self, data: bytes, tid: int, since_ns: int) -> bool:
        page = parse_page(data, self._instance.layout)
        return page.damaged or any(
            event.timestamp_ns >= since_ns and executed(event, self._format) == tid for event in page.events
        )

    def close(self) -> None:
        """Stop tracing."""
        self._instance.close()


class ModuleRequests:
    """Matches helpers to requesters. Call `match` once for each helper, before answering it."""

    def __init__(
        self,
        requester_of: Callable[[int, int, float], Requester | None],
        tracefs: tuple[str, ...] = TRACEFS,
        instance: str = INSTANCE,
        is_asked: Callable[[], bool] = is_helper_set,
    ) -> None:
        """Open or create the instances and start tracing. Events that a killed daemon left unread are used.

        requester_of: that of `Requesters`. is_asked: whether the kernel executes the helper. It is called once the
        trace has begun: helpers of earlier requests may be on their way then, and requesters are unknown at first.
        Raises OSError if tracefs is missing or not permitted, ParseError if its format is unknown.
        """
        self._requester_of, self._open = requester_of, OpenRequests()
        place = next((place for place in tracefs if os.path.isdir(f"{place}/instances")), None)
        if place is None:
            raise FileNotFoundError(errno.ENOENT, "no tracefs with instances", tracefs[0])
        folder = f"{place}/instances/{instance}"
        opened: list[TraceInstance] = []
        try:
            for name, event, kilobytes in ((f"{folder}-exec", _EXEC, _EXEC_KB), (folder, _REQUEST, _REQUEST_KB)):
                opened.append(TraceInstance(name, event, kilobytes))
            self._execs, self._requests = _Execs(opened[0]), opened[1]
            self._layout = self._requests.layout
            self._format = parse_request_format(self._requests.format, self._layout.order)
            if self._requests.is_new and is_asked():
                self._open.began(_now_ns())
        except BaseException:
            for each in opened:
                each.close()
            raise

    def close(self) -> None:
        """Stop tracing and remove the instances."""
        self._requests.close()
        self._execs.close()

    def match(self, name: str) -> Requester | None:
        """Return the requester on whose behalf the helper asks for `name`; None if unknown (see request_matcher.py).

        name: the helper's argument, unchanged, with surrogate escapes. Never raises.
        """
        self.drain()
        return self._open.match(name, _now_ns())

    @property
    def was_ambiguous(self) -> bool:
        """The last `match` found no requester because several had asked for the name at the same time."""
        return self._open.was_ambiguous

    @property
    def candidates(self) -> tuple[Requester, ...]:
        """Those of whom one is the requester then; empty: none is known, one of them is not, or they are too many."""
        return self._open.candidates

    def drain(self) -> None:
        """Read the events since the last call and identify their requesters. Never raises."""
        now, until = _now_ns(), time.monotonic() + _PATIENCE
        batch = self._events(now)
        while batch:
            found = [(event, self._seen_waiting(event, now, until)) for event in batch]
            later = self._events(now)
            self._execs.read(now)
            for event, who in found:
                if event.timestamp_ns + LATEST_NS > now:
                    is_same = who is not None and not self._has_gone_on(event, [*batch, *later])
                    self._open.add(event, who if is_same else None, now)
            batch = later  # there are as many as helpers, which wait for the daemon: this ends

    def _seen_waiting(self, event: ModuleRequested, now: int, until: float) -> Requester | None:
        """Return the process whose thread made the request and is seen waiting for a helper; None: unknown."""
        if not event.wait or event.timestamp_ns + LATEST_NS <= now:
            return None
        return self._requester_of(event.tid, event.timestamp_ns, until)

    def _has_gone_on(self, event: ModuleRequested, others: list[ModuleRequested]) -> bool:
        """Return whether the thread, or one that has its number now, may wait for a helper in another call."""
        since = event.timestamp_ns
        asked_again = any(other.tid == event.tid and other.timestamp_ns > since for other in others)
        return asked_again or self._execs.may_have_executed(event.tid, since)

    def _events(self, now: int) -> list[ModuleRequested]:
        """Return the new requests, oldest first."""
        found = []
        for data in self._requests.pages():
            if data is None:
                self._open.lost(now)
                continue
            page = parse_page(data, self._layout)
            if page.missed or page.damaged:
                # Overwritten events are older than the first one left.
                self._open.lost(page.events[0].timestamp_ns if page.events and not page.damaged else now)
            found += [request for event in page.events if (request := module_requested(event, self._format))]
        return sorted(found, key=lambda event: event.timestamp_ns)


def _now_ns() -> int:
    """Return CLOCK_BOOTTIME in ns, the clock of the trace and of the threads' start times."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
