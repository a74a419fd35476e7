"""What the kernel asks for by itself, kerneld's job: names come in by its helper, answers go back. `KernelRequests`.

Who made the kernel ask is read from its trace at the moment the helper asks: the requester still waits then.
"""

from __future__ import annotations

from kmodd.daemon.engine import Engine
from kmodd.daemon.in_flight import AnyJob
from kmodd.errors import KmoddError
from kmodd.host.helper_socket import KernelRequest, RequestSocket
from kmodd.planning.job import Job
from kmodd.planning.request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kmodd.host.request_tracer import ModuleRequests


class KernelRequests:
    """The requests that are with the line."""

    def __init__(self, engine: Engine, socket: RequestSocket, trace: ModuleRequests | None = None) -> None:
        """`trace` None: nobody can say who asked, or not before `open_trace`."""
        self._engine = engine
        self._socket = socket
        self._trace = trace
        self._asked: list[tuple[Request, KernelRequest]] = []

    def open_trace(self) -> None:
        """From now on know who asks, if the kernel's trace is to be had; once is enough."""
        if self._trace is not None:
            return
        try:
            from kmodd.host.request_tracer import ModuleRequests  # only here: after READY, and five files

            self._trace = ModuleRequests()
        except (OSError, ImportError, KmoddError) as error:
            self._engine.report.complain_once(f"{error}: nobody can say who makes the kernel ask for modules")

    def fileno(self) -> int:
        """For select: readable when there is something to `listen` to."""
        return self._socket.fileno()

    def close(self) -> None:
        """Take no more; who waits does without us, or is refused, as policy has it."""
        self._socket.close()
        if self._trace:
            self._trace.close()

    def listen(self) -> None:
        """Take what has come, and forget helpers that have gone: what they wanted is loaded or not all the same."""
        for asked in self._socket.receive():
            requester = self._trace.match(asked.name) if self._trace else None
            request = Request(asked.name, "request", requester=requester)
            if self._engine.view.no_tree or not self._engine.intake.order(request):
                self._socket.turn_away(asked)  # it does without us, where policy lets it
            else:
                self._asked.append((request, asked))
        gone = self._socket.gone()
        if gone:
            self._asked = [each for each in self._asked if each[1] not in gone]

    def ended(self, job: AnyJob) -> None:
        """A job is through: if it was the kernel's, its helper is told."""
        for each in self._asked:
            request, asked = each
            if request is job.plan.request:
                self._asked.remove(each)
                if isinstance(job, Job) and job.abandoned:
                    self._socket.turn_away(asked)
                else:
                    self._socket.answer(asked, isinstance(job, Job) and is_there(job))
                return


def is_there(job: Job) -> bool:
    """The exit status of `modprobe -q` as a word: the last of its goals counts, and a blacklisted one is no failure."""
    if not job.plan.goals:
        return False
    target = job.plan.goals[-1].module
    return any(each.module == target and (each.ok or each.result == "blacklisted") for each in job.outcomes)
