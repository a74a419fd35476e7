"""Answers to those who call on the control socket: what is wished, done with the line, now or later."""

from __future__ import annotations

import time

import kmodd
from kmodd.daemon.engine import Engine
from kmodd.daemon.in_flight import AnyJob
from kmodd.dataclass import dataclass
from kmodd.errors import NoTree, Problem, assert_never
from kmodd.host.coldplug import last_seqnum
from kmodd.host.config_files import read_boot_list
from kmodd.host.kernel_facts import read_facts
from kmodd.host.sd_notify import Notify
from kmodd.host.varlink_server import (
    Connection,
    ControlSocket,
    ExplainCall,
    LoadCall,
    MethodCall,
    ReloadCall,
    SealCall,
    SettleCall,
    StatusCall,
    UnloadCall,
)  # fmt: skip
from kmodd.planning.job import Job
from kmodd.planning.outcome import Outcome
from kmodd.planning.plan import Insmod
from kmodd.planning.record import INFO, RELOADED, Record, record_of
from kmodd.planning.removal import RemovalJob
from kmodd.planning.request import RemovalOptions, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any


@dataclass(frozen=True, slots=True, eq=False)
class _Settling:
    """A settle call that waits."""

    connection: Connection
    deadline: float | None
    """time.monotonic, seconds; None: never."""
    seqnum: int
    """The kernel's last event when the call came."""
    since: float
    """time.monotonic when it came."""
    asked: list[Request]
    """What somebody waited for by then. What processes ask for later is not its matter: it may never end."""


class ControlHandler:
    """Holds the calls that wait for something."""

    def __init__(
        self,
        engine: Engine,
        socket: ControlSocket,
        notify: Notify,
        facts: dict[str, Any],
        lacks: Callable[[], list[str]] = list,
    ) -> None:
        """`facts`: what of `Status` never changes: release, root, dry_run. `lacks` says what was not to be had."""
        self._engine = engine
        self._socket = socket
        self._notify = notify
        self._facts = facts
        self._root = str(facts.get("root", ""))
        self._lacks = lacks
        self._settling: list[_Settling] = []
        self._loading: list[tuple[Request, Connection]] = []
        self._since = time.monotonic()

    def next_deadline(self) -> float | None:
        """When (time.monotonic, seconds) the first settle call gives up; None: never."""
        return min((waiter.deadline for waiter in self._settling if waiter.deadline is not None), default=None)

    def listen(self) -> None:
        """Take every whole call that has come in by now."""
        for connection in list(self._socket.connections):
            if call := self._socket.next_call(connection):
                self._handle(connection, call)

    def _handle(self, connection: Connection, call: MethodCall) -> None:
        """Answer a wish, or keep it until what it waits for has come."""
        match call:
            case StatusCall():
                self._socket.answer(connection, self._status())
            case ExplainCall(text):
                self._explain(connection, text)
            case LoadCall(text, parameters):
                self._order(connection, Request(text, "operator", params=parameters))
            case UnloadCall(text, first_time, go_on):
                removing = RemovalOptions(first_time=first_time, ends_at_failure=not go_on)
                self._order(connection, Request(text, "operator", removing=removing))
            case SettleCall(timeout_usec):
                deadline = None if timeout_usec is None else time.monotonic() + timeout_usec / 1e6
                if self._engine.view.no_tree and len(self._engine.intake):
                    self._socket.refuse(connection, "NoModuleTree", {"message": self._engine.view.no_tree})
                else:
                    waiter = _Settling(connection, deadline, last_seqnum(self._root), time.monotonic(), self._asked())
                    self._settling.append(waiter)
            case SealCall(sealed):
                self._engine.seal(sealed)
                self._socket.answer(connection, {})
            case ReloadCall():
                problems = self.reload()
                if self._engine.view.no_tree:
                    self._socket.refuse(connection, "NoModuleTree", {"message": self._engine.view.no_tree})
                else:
                    self._socket.answer(connection, {"problems": [str(problem) for problem in problems]})
            case _:
                assert_never(call)

    def _order(self, connection: Connection, request: Request) -> None:
        self._engine.refresh()
        if self._engine.view.no_tree:
            self._socket.refuse(connection, "NoModuleTree", {"message": self._engine.view.no_tree})
        elif self._engine.intake.order(request):
            self._loading.append((request, connection))
        else:
            self._socket.refuse(connection, "Busy", {})

    def reload(self) -> Sequence[Problem]:
        """Read everything again, as on SIGHUP; the service manager is told when it begins and ends."""
        self._notify.reloading()
        problems = self._engine.reload()
        self._engine.intake.boot(read_boot_list(self._root))
        message = f"Read indexes and configuration again: {len(problems)} lines are of no use"
        if not self._engine.view.no_tree:
            self._engine.report.tell(Record(RELOADED, INFO, message))
        self._notify.ready(self._engine.view.no_tree or message)
        return problems

    def ended(self, job: AnyJob) -> None:
        """A job is through: whoever ordered it is answered."""
        for waiter in self._loading:
            request, connection = waiter
            if request is job.plan.request or request == job.plan.request:
                self._loading.remove(waiter)
                self._socket.answer(connection, _removed(job) if isinstance(job, RemovalJob) else _loaded(job))
                return

    def settled(self, seqnum: int | None, unread_since: float | None) -> None:
        """All devices are answered, up to the event `seqnum`; None: and the socket is empty.

        `unread_since`: when (time.monotonic) files began to change that are not read yet; None: all are read.
        Some numbers never come: events of network interfaces go to their own network namespace alone.
        """
        asked = {id(request) for request in self._asked()} if self._settling else set[int]()
        for waiter in list(self._settling):
            has_files = unread_since is None or waiter.since < unread_since
            has_answers = all(id(request) not in asked for request in waiter.asked)
            if has_files and has_answers and (seqnum is None or waiter.seqnum <= seqnum):
                self._settling.remove(waiter)
                self._socket.answer(waiter.connection, {})

    def _asked(self) -> list[Request]:
        """All that somebody waits for now."""
        return [*self._engine.intake.turns.waiting(), *self._engine.in_flight.own_requests()]

    def expire(self) -> None:
        """Give up on settle calls whose time is over, and forget callers that have gone."""
        if not (self._settling or self._loading):
            return
        now = time.monotonic()
        here = self._socket.connections
        for waiter in list(self._settling):
            if waiter.deadline is not None and waiter.deadline <= now:
                busy = [batch.module for batch in self._engine.in_flight.busy()]
                stuck = sorted({*busy, *self._engine.others.busy()})
                self._socket.refuse(waiter.connection, "TimedOut", {"stuck": stuck})
                self._settling.remove(waiter)
        self._settling = [waiter for waiter in self._settling if waiter.connection in here]
        self._loading = [(request, c) for request, c in self._loading if c in here]

    def _explain(self, connection: Connection, text: str) -> None:
        try:
            self._engine.refresh()
            plan = self._engine.view.plan(Request(text, "operator"))
        except NoTree as error:
            self._socket.refuse(connection, "NoModuleTree", {"message": str(error)})
        else:
            from kmodd.planning.explain import as_object  # only here: few ask

            kind = "modalias" if ":" in text else "module"
            self._socket.answer(connection, {"plan": as_object(kind, plan)})

    def _status(self) -> dict[str, Any]:
        engine = self._engine
        batches = engine.in_flight.batches
        now = time.monotonic()
        return {
            "version": kmodd.__version__,
            **self._facts,
            "uptime_usec": int((time.monotonic() - self._since) * 1e6),
            "events": engine.report.counters.events,
            "overruns": engine.report.counters.overruns,
            "repeats": engine.report.counters.repeats,
            "waiting": len(engine.intake) + len(engine.in_flight.parked) + len(engine.in_flight.ready),
            "lanes": [
                {"pid": lane.pid, "module": batches[lane].module, "since_usec": int((now - batches[lane].since) * 1e6)}
                if lane in batches
                else {"pid": lane.pid}
                for lane in engine.scheduler.lanes
            ],
            "stuck": engine.scheduler.stuck(),
            "quarantine": sorted(engine.standing.crashed),
            "policy": engine.guard.mode,
            "phase": engine.guard.phase,
            "autoclean": [
                {"module": module, "left_usec": int(left * 1e6)}
                for module, left in engine.autoclean.waiting(time.monotonic())
            ],
            "counts": dict(engine.report.counters.results),
            "records_held_back": engine.report.records_held_back,
            "records_lost": engine.report.records_lost,
            "problems": self._problems(),
        }

    def _problems(self) -> list[str]:
        """What is wrong, or works less well than it could, now."""
        facts = read_facts(self._root)
        said = (
            self._engine.view.no_tree,
            self._engine.scheduler.dispatcher.why,
            "kernel.panic_on_oops=1: a module that crashes takes the machine down" if facts.panic_on_oops else "",
            "kernel.modules_disabled=1: nothing can be loaded until the next boot" if facts.modules_disabled else "",
        )
        return [problem for problem in (*said, *self._lacks()) if problem]


def _loaded(job: Job) -> dict[str, Any]:
    """The answer to Load: each outcome belongs to one entry of the plan, in order."""
    goals = job.plan.goals
    entries = [(number, entry) for number, goal in enumerate(goals) for entry in goal.entries]
    results = []
    for (number, entry), outcome in zip(entries, job.outcomes, strict=False):
        tried = isinstance(entry, Insmod) and outcome.path
        action = f"insmod {entry.path} {entry.options}" if isinstance(entry, Insmod) and tried else ""
        results.append(_result(outcome, number, entry.required, action))
    if not entries:
        results = [_result(outcome, 0, True, "") for outcome in job.outcomes]
    shown = [{"module": goal.module, "complaints": list(goal.complaints)} for goal in goals]
    return {"results": results, "goals": shown, "complaints": list(job.plan.complaints)}


def _removed(job: RemovalJob) -> dict[str, Any]:
    """The answer to Unload."""
    results = []
    for outcome in job.outcomes:
        tried = outcome.result in ("removed", "not_removed") and not outcome.at
        results.append(_result(outcome, 0, True, f"rmmod {outcome.module}" if tried else ""))
    return {"results": results, "failed": job.failed, "complaints": list(job.plan.complaints)}


def _result(outcome: Outcome, goal: int, required: bool, action: str) -> dict[str, Any]:
    return {
        "module": outcome.module,
        "result": outcome.result,
        "because": str(outcome.because),
        "errno": outcome.errno,
        "duration_usec": outcome.duration_usec,
        "message": record_of(outcome).message,
        "goal": goal,
        "required": required,
        "action": action,
    }
