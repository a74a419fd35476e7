"""The kernel's own requests (request_module): names come from its helper, and the result goes back. `KernelRequests`.

The process that made the kernel ask is read from its trace at the moment the helper asks: it is still waiting then.
"""

from __future__ import annotations

from kmodd.engine.events import AnyJob, Busy
from kmodd.errors import KmoddError
from kmodd.host.helper_socket import KernelRequest, RequestSocket
from kmodd.planning.job import Job
from kmodd.planning.request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kmodd.host.request_tracer import ModuleRequests
    from kmodd.host.requesters import Requesters


class KernelRequests:
    """The helpers that wait for the engine."""

    def __init__(
        self, socket: RequestSocket, trace: ModuleRequests | None = None, requesters: Requesters | None = None
    ) -> None:
        """trace: None until `open_trace`; the requester is unknown before. requesters: None if it is never opened."""
        self._socket = socket
        self._requesters = requesters
        self._trace = trace
        self._tries = 0 if trace else 2  # before READY where the kernel asks already, and after it
        self._wants_loads = requesters is not None
        self._waiting: list[tuple[Request, KernelRequest]] = []

    @property
    def needs_trace(self) -> bool:
        """Whether `open_late` may still succeed."""
        return self._tries > 0 or self._wants_loads

    def open_late(self) -> str:
        """Open a trace that is not open yet, that of requests first; result as of `open_trace`."""
        return self.open_trace() if self._tries else self._open_loads()

    def open_trace(self) -> str:
        """Find out from now on who makes the kernel ask. Returns why that is not possible; empty: it is."""
        if not self._tries or self._requesters is None:
            return ""
        self._tries -= 1
        try:
            from kmodd.host.request_tracer import ModuleRequests  # only here: after READY, and five files

            self._trace, self._tries = ModuleRequests(self._requesters.requester_of), 0
        except (OSError, ImportError, KmoddError) as error:
            return f"Failed to trace module requests: {error}; the requester stays unknown"
        return ""

    def _open_loads(self) -> str:
        """Have the kernel record who loads modules, also without kmodd (`kmodd verify`); result as of `open_trace`."""
        self._wants_loads = False
        try:
            from kmodd.host.load_tracer import trace_loads  # only here: after READY

            trace_loads()
        except (OSError, ImportError, KmoddError) as error:
            if self._trace:  # else that is said already
                return f"Failed to trace loads of modules: {error}; `kmodd verify` cannot say who made them"
        return ""

    def fileno(self) -> int:
        """For select: readable when `receive` has something."""
        return self._socket.fileno()

    def receive(self) -> list[Request]:
        """Take the requests that have come, and forget helpers that are gone: what they asked for is loaded anyway."""
        requests = []
        for asked in self._socket.receive():
            requester = self._trace.match(asked.name) if self._trace else None
            is_ambiguous = self._trace is not None and self._trace.was_ambiguous
            candidates = self._trace.candidates if self._trace else ()
            request = Request(asked.name, "request", requester=requester, ambiguous=is_ambiguous, candidates=candidates)
            self._waiting.append((request, asked))
            requests.append(request)
        if gone := self._socket.gone():
            self._waiting = [each for each in self._waiting if each[1] not in gone]
        return requests

    def turned_away(self, request: Request, why: Busy) -> None:
        """A request is not taken, for whatever reason: its helper does without the daemon, where the policy lets it."""
        del why
        if asked := self._pop(request):
            self._socket.turn_away(asked)

    def finished(self, job: AnyJob) -> None:
        """A job is complete: if it was the kernel's, answer its helper."""
        asked = self._pop(job.plan.request)
        if asked is None:
            return
        if isinstance(job, Job) and job.abandoned:
            self._socket.turn_away(asked)
        else:
            self._socket.answer(asked, isinstance(job, Job) and is_there(job))

    def _pop(self, request: Request) -> KernelRequest | None:
        """Take the helper that waits for `request`."""
        for each in self._waiting:
            if each[0] is request:
                self._waiting.remove(each)
                return each[1]
        return None

    def close(self) -> None:
        """Take no more; helpers that wait do without the daemon or are refused, as the policy says."""
        self._socket.close()
        if self._trace:
            self._trace.close()


def is_there(job: Job) -> bool:
    """The exit status of `modprobe -q` as a word: the last of its goals counts, and a blacklisted one is no failure.

    Nor is one that an install command such as /bin/true keeps out.
    """
    if not job.plan.goals:
        return False
    target = job.plan.goals[-1].module
    ends = [each for each in job.outcomes if each.module == target]
    is_kept_out = [each.result in ("blacklisted", "blocked") and not each.errno for each in ends]
    return any(is_kept_out) or any(each.ok for each in ends)
