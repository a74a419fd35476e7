"""`Wait` calls: each is answered when a module or the requests of a device have ended, or cannot succeed any more."""

from __future__ import annotations

from kmodd.dataclass import dataclass
from kmodd.engine.engine import Engine
from kmodd.engine.events import AnyJob
from kmodd.errors import NoTree
from kmodd.host.varlink_server import Connection, ControlSocket, WaitCall
from kmodd.index.catalog import lookup_or_nothing
from kmodd.planning.request import Request
from kmodd.state.tally import FAILURES, REFUSALS

MAX_WAITS = 32
"""Calls of users other than root that may wait at a time: connections are left for others."""

MAX_GOALS = 64
"""Modules of one answer of `Explain` or `Wait`; no device has as many. Each one waited for costs time in each round."""

MAX_FAILED = 1024
"""Modules whose failure is remembered."""

LOOK_EVERY = 1.0
"""Seconds between two looks at modules that other programs load."""


@dataclass(frozen=True, slots=True, eq=False)
class _Wait:
    """A call that waits."""

    connection: Connection
    modules: tuple[str, ...]
    """Any of these is waited for; empty: a device is."""
    device: str
    deadline: float | None
    """Monotonic, seconds; None: none."""


class Waits:
    """Holds the calls that wait for a module or a device."""

    def __init__(self, engine: Engine, socket: ControlSocket) -> None:
        self._engine = engine
        self._socket = socket
        self._waits: list[_Wait] = []
        self._failed: dict[str, str] = {}
        """Module → result of its last load, if that failed or was refused."""
        self._look_at = 0.0

    def deadline(self) -> float | None:
        """Return when `check` has something to do without another event (monotonic, seconds); None: never."""
        times = [wait.deadline for wait in self._waits if wait.deadline is not None]
        return min([self._look_at, *times]) if self._waits else None

    def add(self, connection: Connection, call: WaitCall, now: float) -> None:
        """Answer a call, or keep it until what it waits for has ended. now: monotonic, seconds."""
        modules: tuple[str, ...] = ()
        if call.module:
            try:
                modules = self._modules(call.module)
            except NoTree as error:
                self._socket.refuse(connection, "NoModuleTree", {"message": str(error)})
                return
            except ValueError:
                self._socket.refuse(connection, "TooManyModules", {})
                return
            if not modules:
                self._socket.refuse(connection, "UnknownName", {})
                return
        if connection.uid != 0 and sum(wait.connection.uid != 0 for wait in self._waits) >= MAX_WAITS:
            self._socket.refuse(connection, "Busy", {})
            return
        deadline = None if call.timeout_usec is None else now + call.timeout_usec / 1e6
        self._waits.append(_Wait(connection, modules, call.device or "", deadline))
        self._look_at = now  # not at once: events that were sent before the call are read first

    def finished(self, job: AnyJob) -> None:
        """Note how the modules of a complete job have fared."""
        for outcome in job.outcomes:
            if outcome.result in FAILURES | REFUSALS:
                if len(self._failed) < MAX_FAILED:
                    self._failed[outcome.module] = outcome.result
            elif outcome.ok:
                self._failed.pop(outcome.module, None)

    def check(self, now: float) -> None:
        """Answer the calls that have come to an end, or to their timeout; forget callers that have disconnected."""
        connected = self._socket.connections
        for wait in [wait for wait in self._waits if wait.connection in connected]:
            if ended := self._ended(wait):
                self._socket.answer(wait.connection, {"name": ended[0], "result": ended[1]})
            elif wait.deadline is not None and wait.deadline <= now:
                loading = sorted(batch.module for batch in self._engine.state.in_flight.awaited())
                self._socket.refuse(wait.connection, "TimedOut", {"stuck": loading})
            else:
                continue
            self._waits.remove(wait)
        self._waits = [wait for wait in self._waits if wait.connection in connected]
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY

    def _modules(self, text: str) -> tuple[str, ...]:
        """Return the modules that a name or alias stands for; empty: the indexes do not know it.

        Raises NoTree; ValueError: they are more than MAX_GOALS.
        """
        system = self._engine.state.system
        if system.snapshot and len(lookup_or_nothing(text, system.snapshot)) > MAX_GOALS:
            raise ValueError(text)
        plan = system.plan(Request(text, "operator"))
        named = [goal.module for goal in plan.goals]
        unknown = {skip.module for skip in plan.skips if skip.reason == "no_match"}
        return tuple(dict.fromkeys(name for name in named if name not in unknown))

    def _ended(self, wait: _Wait) -> tuple[str, str] | None:
        """Return a module or device that is waited for and its result; None: it goes on."""
        if wait.device:
            return None if self._is_pending(wait.device) else (wait.device, "answered")
        results = [(module, self._result(module)) for module in wait.modules]
        there = [(module, result) for module, result in results if result in ("live", "builtin")]
        if there:
            return there[0]
        return next(((m, result) for m, result in results if result), None) if all(r for _, r in results) else None

    def _result(self, module: str) -> str:
        """Return `live`, `builtin`, or why the module does not start any more; empty: it may."""
        state = self._engine.state
        now_in = state.system.loaded().state(module)
        if now_in == "live":
            return "live"
        if state.system.snapshot and state.system.snapshot.catalog.is_builtin(module):
            return "builtin"
        if module in state.quarantine.crashed:
            return "crashed"
        if now_in or not self._engine.is_idle:
            return ""
        return self._failed.get(module, "")

    def _is_pending(self, device: str) -> bool:
        """Return whether a request of a device waits or is in flight."""
        state = self._engine.state
        if state.queue.replay or state.queue.devices.has_device(device):
            return True
        return any(device in job.plan.request.all_devices for job in state.in_flight.jobs())
