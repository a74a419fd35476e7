"""Calls on the control socket: answered at once, or when what they wait for has ended. A `ControlHandler`."""

from __future__ import annotations

import os
import time

from kmodd.daemon import status
from kmodd.daemon.monitors import Monitors
from kmodd.daemon.waits import MAX_GOALS, Waits
from kmodd.dataclass import dataclass
from kmodd.engine.engine import Engine
from kmodd.engine.events import AnyJob, Busy, CheckFiles, Event, Log, Requested, SealRequested
from kmodd.errors import NoTree, Problem, assert_never
from kmodd.host.coldplug import last_seqnum
from kmodd.host.config_files import secret_files
from kmodd.host.varlink_server import (
    Connection,
    ControlSocket,
    ExplainCall,
    LoadCall,
    LogLevelCall,
    LookupCall,
    MethodCall,
    MonitorCall,
    ReloadCall,
    SealCall,
    SettleCall,
    StatusCall,
    UnloadCall,
    WaitCall,
)  # fmt: skip
from kmodd.planning.job import Job
from kmodd.planning.outcome import HAS_PARAMETERS, gets_parameters
from kmodd.planning.plan import Insmod
from kmodd.planning.removal import RemovalJob
from kmodd.planning.request import RemovalOptions, Request
from kmodd.state.call_budget import CallBudget

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any


@dataclass(frozen=True, slots=True)
class Actions:
    """What the daemon does for callers."""

    handle: Callable[[Event], None]
    """Have the engine handle an event, and carry out its commands."""
    reload: Callable[[], Sequence[Problem]]
    """Read configuration, boot list and changed indexes again. Returns the lines that could not be used."""
    status: Callable[[], dict[str, Any]]
    """The answer to `Status`."""


@dataclass(frozen=True, slots=True, eq=False)
class _Settling:
    """A `Settle` call that waits."""

    connection: Connection
    deadline: float | None
    """Monotonic, seconds; None: there is none."""
    seqnum: int
    """Number of the kernel's latest uevent when the call came."""
    since: float
    """When the call came (monotonic, seconds)."""
    requests: list[Request]
    """Requests of other callers at that time. Later ones are not waited for: there may be no end of them."""


def _close_files(request: Request) -> None:
    """Close what came with a request."""
    for _, offer in request.files:
        os.close(offer)


class ControlHandler:
    """Holds the calls that wait."""

    def __init__(self, engine: Engine, socket: ControlSocket, actions: Actions, root: str = "") -> None:
        self._engine = engine
        self._socket = socket
        self._actions = actions
        self._root = root
        self._settling: list[_Settling] = []
        self._waiting: list[tuple[Request, Connection]] = []
        self._waits = Waits(engine, socket)
        self._budget = CallBudget()
        self._monitors = Monitors(socket, self._budget, root)

    def deadline(self, now: float) -> float | None:
        """When the first call times out, is looked after, or may be handled (monotonic, seconds); None: never."""
        times = [self._waits.deadline(), *(waiter.deadline for waiter in self._settling)]
        times += [self._budget.free_at(each.uid, now) for each in self._socket.ready()]
        return min((each for each in times if each is not None), default=None)

    def handle_call(self) -> bool:
        """Handle one call; return whether there was one. The loop serves the kernel between any two calls."""
        now = time.monotonic()
        ready = (each for each in self._socket.ready() if self._budget.may_call(each.uid, now))
        connection = next(ready, None)
        if connection is None:
            return False
        self._socket.load_package()  # of no user's time
        begin = time.thread_time()
        if call := self._socket.next_call(connection):
            self._handle(connection, call)
        self._budget.spend(connection.uid, time.thread_time() - begin, now)
        return True

    def _handle(self, connection: Connection, call: MethodCall) -> None:
        """Answer a call, or keep it until what it waits for has ended."""
        match call:
            case StatusCall():
                self._socket.answer(connection, self._actions.status())
            case ExplainCall(text):
                self._explain(connection, text)
            case LookupCall(names):
                self._look_up(connection, names)
            case LoadCall():
                self._load(connection, call)
            case UnloadCall(text, first_time, go_on):
                removing = RemovalOptions(first_time=first_time, ends_at_failure=not go_on)
                self._order(connection, Request(text, "operator", removing=removing, since=time.monotonic()))
            case SettleCall(timeout_usec):
                self._settle(connection, timeout_usec)
            case WaitCall():
                self._actions.handle(CheckFiles())
                self._waits.add(connection, call, time.monotonic())
            case MonitorCall():
                self._monitors.add(connection)
            case LogLevelCall(level):
                self._engine.set_log_level(level)
                self._socket.answer(connection, {})
            case SealCall(sealed):
                self._actions.handle(SealRequested(sealed))
                self._socket.answer(connection, {})
            case ReloadCall():
                problems = self._actions.reload()
                if not self._refused_without_tree(connection):
                    self._socket.answer(connection, {"problems": [str(problem) for problem in problems]})
            case _:
                assert_never(call)

    def _refused_without_tree(self, connection: Connection) -> bool:
        """Answer with NoModuleTree if there is none. Return whether that is so."""
        if no_tree := self._engine.state.system.no_tree:
            self._socket.refuse(connection, "NoModuleTree", {"message": no_tree})
        return bool(no_tree)

    def _load(self, connection: Connection, call: LoadCall) -> None:
        printed = (path.removeprefix(self._root) for path in call.files)
        files = tuple(zip(printed, call.offers, strict=True))
        request = Request(call.request, "operator", params=call.parameters, files=files, since=time.monotonic())
        if needed := self._needed_files(request):
            _close_files(request)
            self._socket.refuse(connection, "FilesNeeded", {"files": needed})
        elif job := self._refused_whole(request):
            _close_files(request)
            self._socket.answer(connection, status.loaded(job))
        else:
            self._order(connection, request)

    def _needed_files(self, request: Request) -> list[str]:
        """The files, with root, of the plan for `request` that are not root's alone and not opened by its caller."""
        self._actions.handle(CheckFiles())
        try:
            steps = self._engine.state.system.plan(request).steps
        except NoTree:
            return []
        found = (
            self._root + step.path
            for step in steps
            if isinstance(step, Insmod) and step.foreign and step.offered is None
        )
        return list(dict.fromkeys(found))

    def _refused_whole(self, request: Request) -> Job | None:
        """The job of a request with parameters for an install command, none of it begun; None: another request."""
        try:
            plan = self._engine.state.system.plan(request) if request.params else None
        except NoTree:
            return None
        if plan is None or not any(gets_parameters(request, step) for step in plan.steps):
            return None
        job = Job(plan)
        job.abandon(HAS_PARAMETERS)
        return job

    def _order(self, connection: Connection, request: Request) -> None:
        self._waiting.append((request, connection))
        self._actions.handle(Requested(request))

    def _explain(self, connection: Connection, text: str) -> None:
        self._actions.handle(CheckFiles())
        system = self._engine.state.system
        try:
            secret = self._secret_from(connection)
            plan = system.explain(text, secret, MAX_GOALS, with_rules=connection.uid == 0)
        except NoTree as error:
            self._socket.refuse(connection, "NoModuleTree", {"message": str(error)})
        except ValueError:
            self._socket.refuse(connection, "TooManyModules", {})
        else:
            from kmodd.planning.explain import as_object  # only here: it is rarely asked for

            kind = "modalias" if ":" in text else "module"
            self._socket.answer(connection, {"plan": as_object(kind, plan)})

    def _look_up(self, connection: Connection, names: Sequence[str]) -> None:
        self._actions.handle(CheckFiles())
        try:
            found, builtin = self._engine.state.system.look_up(names, self._secret_from(connection))
        except NoTree as error:
            self._socket.refuse(connection, "NoModuleTree", {"message": str(error)})
        else:
            self._socket.answer(connection, {"modules": found, "builtin": builtin})

    def _secret_from(self, connection: Connection) -> frozenset[str]:
        """The files of modprobe.d of which this caller may learn nothing. Raises NoTree."""
        if connection.uid == 0:
            return frozenset()
        return secret_files(self._engine.state.system.config_files(), self._root)

    def _settle(self, connection: Connection, timeout_usec: int | None) -> None:
        now = time.monotonic()
        if not (len(self._engine.state.queue) and self._refused_without_tree(connection)):
            deadline = None if timeout_usec is None else now + timeout_usec / 1e6
            seqnum = last_seqnum(self._root)
            self._settling.append(_Settling(connection, deadline, seqnum, now, self._callers_requests()))

    def _callers_requests(self) -> list[Request]:
        """All requests that callers wait for now."""
        state = self._engine.state
        return [*state.queue.interactive.waiting(), *state.in_flight.interactive_requests()]

    def logged(self, log: Log) -> None:
        """A record is written: send it to the callers of `Monitor`."""
        self._monitors.write(log, time.monotonic())

    def turned_away(self, request: Request, why: Busy) -> bool:
        """A request is not taken: answer its caller. Return whether it had one."""
        _close_files(request)
        for waiter in self._waiting:
            if waiter[0] is request:
                self._waiting.remove(waiter)
                if why == "no_tree":
                    self._refused_without_tree(waiter[1])
                else:
                    self._socket.refuse(waiter[1], "Busy", {})
                return True
        return False

    def finished(self, job: AnyJob) -> None:
        """A job is complete: answer the caller who ordered it."""
        self._waits.finished(job)
        _close_files(job.plan.request)
        for waiter in self._waiting:
            request, connection = waiter
            if request is job.plan.request or request == job.plan.request:
                self._waiting.remove(waiter)
                answer = status.removed(job) if isinstance(job, RemovalJob) else status.loaded(job)
                self._socket.answer(connection, answer)
                return

    def settled(self, seqnum: int | None, unread_since: float | None) -> None:
        """Answer `Settle` calls: all devices up to the uevent `seqnum` are answered; None: and the socket is empty.

        `unread_since`: when files began to change that are not read yet (monotonic, seconds); None: all are read.
        Some numbers never come: uevents of network interfaces go to their own network namespace alone.
        """
        waiting = {id(request) for request in self._callers_requests()} if self._settling else set[int]()
        for waiter in list(self._settling):
            has_files = unread_since is None or waiter.since < unread_since
            has_answers = all(id(request) not in waiting for request in waiter.requests)
            if has_files and has_answers and (seqnum is None or waiter.seqnum <= seqnum):
                self._settling.remove(waiter)
                self._socket.answer(waiter.connection, {})

    def expire(self) -> None:
        """Answer calls that have come to their end or timeout, and forget callers that have disconnected."""
        self._waits.check(time.monotonic())
        if not (self._settling or self._waiting):
            return
        now = time.monotonic()
        connected = self._socket.connections
        state = self._engine.state
        for waiter in list(self._settling):
            if waiter.deadline is not None and waiter.deadline <= now:
                modules = {*(batch.module for batch in state.in_flight.awaited()), *state.foreign.awaited()}
                self._socket.refuse(waiter.connection, "TimedOut", {"stuck": sorted(modules)})
                self._settling.remove(waiter)
        self._settling = [waiter for waiter in self._settling if waiter.connection in connected]
        self._waiting = [(request, each) for request, each in self._waiting if each in connected]
