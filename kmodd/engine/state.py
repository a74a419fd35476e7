"""All state of the engine, and the one table of what an event makes invalid: `EngineState`."""

from __future__ import annotations

from kmodd.dataclass import dataclass
from kmodd.engine.events import AnyJob, Command, Finish, PolicyMarks, StopBatch
from kmodd.engine.firmware_retry import FirmwareRetry
from kmodd.engine.foreign_loads import ForeignLoads
from kmodd.engine.in_flight import InFlight
from kmodd.engine.lanes import Lanes
from kmodd.engine.loader_supply import LoaderSupply
from kmodd.engine.machine import Machine
from kmodd.engine.policy_state import PolicyState
from kmodd.engine.reporter import Reporter
from kmodd.engine.request_queue import RequestQueue
from kmodd.engine.system_state import SystemState
from kmodd.state.autoclean import Autoclean
from kmodd.state.quarantine import Quarantine
from kmodd.state.result_cache import ResultCache
from kmodd.state.retries import Retries

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Cause = Literal[
        "index_changed", "index_reread", "policy_changed", "seal_removed", "events_lost", "module_removed",
        "obstacle_gone", "command_ran", "load_failed", "removal_ended", "foreign_load_ended", "late_result",
    ]  # fmt: skip
    Results = Literal["", "denied", "modules", "index"]
else:
    Cause = Results = str


@dataclass(frozen=True, slots=True)
class Invalidation:
    """What no longer holds."""

    loaded: bool = False
    """The list of loaded modules."""
    plans: bool = False
    """That list, and plans that have not begun: their requests are resolved again."""
    batches: bool = False
    """Batches: each loader ends after its current step, and the rest is planned again."""
    results: Results = ""
    """Cached results: of denied requests, all ("modules"), and also which requests without a match were recorded."""
    missing_files: bool = False
    """Requests that wait for a missing module file."""
    devices: bool = False
    """What devices have been given: sysfs is replayed."""


INVALIDATIONS: dict[Cause, Invalidation] = {
    "index_changed": Invalidation(plans=True, batches=True, results="index", missing_files=True, devices=True),
    "index_reread": Invalidation(results="denied", devices=True),
    "policy_changed": Invalidation(plans=True, batches=True, results="modules"),
    "seal_removed": Invalidation(plans=True, batches=True, results="modules", devices=True),
    "events_lost": Invalidation(plans=True, results="modules", devices=True),
    "module_removed": Invalidation(plans=True, results="modules"),
    # A module is live that was kept out or had failed: a device may lack another one that needs it.
    "obstacle_gone": Invalidation(results="modules", devices=True),
    "command_ran": Invalidation(plans=True),
    "load_failed": Invalidation(loaded=True),
    "removal_ended": Invalidation(results="modules"),
    "foreign_load_ended": Invalidation(results="modules", devices=True),
    "late_result": Invalidation(results="modules", devices=True),
}


class EngineState:
    """The parts of the engine's state; each part changes only itself."""

    def __init__(self, machine: Machine, marks: PolicyMarks, quarantine: Quarantine, *, dry_run: bool = False) -> None:
        """`dry_run`: no device is probed."""
        self.now = 0.0
        """Time of the current event (monotonic, seconds)."""
        self._commands: list[Command] = []
        self._finished: list[Finish] = []
        self._batches = 0
        self.machine = machine
        self.reporter = Reporter(self.emit, machine)
        self.policy = PolicyState(machine, self.reporter, marks)
        self.system = SystemState(machine, self.reporter, self.policy)
        self.queue = RequestQueue()
        self.in_flight = InFlight()
        self.lanes = Lanes(machine, self.in_flight)
        self.supply = LoaderSupply()
        self.results = ResultCache()
        self.retries = Retries()
        self.quarantine = quarantine
        self.foreign = ForeignLoads()
        self.autoclean = Autoclean()
        self.firmware = FirmwareRetry(machine, self.reporter, self.emit, self.next_batch, dry_run)

    def set_time(self, now: float) -> None:
        """Begin to handle an event at `now` (monotonic, seconds)."""
        self.now = now
        self.reporter.set_time(now)
        self.system.set_time(now)
        self.queue.set_time(now)

    # -- commands ----------------------------------------------------------------------------------------------

    def emit(self, command: Command) -> None:
        """Give a command to the daemon, behind the earlier ones."""
        self._commands.append(command)

    def finish(self, job: AnyJob) -> None:
        """Have the caller of a complete job answered, behind all other commands: its records are written first."""
        self._finished.append(Finish(job))

    def pop_commands(self) -> list[Command]:
        """Take the commands so far."""
        commands = [*self._commands, *self._finished]
        self._commands, self._finished = [], []
        return commands

    def next_batch(self) -> int:
        """A number that no batch or probe has had."""
        self._batches += 1
        return self._batches

    # -- what more than one part knows -------------------------------------------------------------------------

    def is_full(self) -> bool:
        """Whether each lane for devices is in use."""
        return self.lanes.is_full(self.system.settings, self.now)

    def stuck(self) -> list[str]:
        """Modules whose load does not return, and is not waited for."""
        return sorted({*self.in_flight.stuck(), *self.foreign.stuck()})

    def is_starting(self, name: str) -> bool:
        """Whether the kernel starts `name`, for a batch or another process, and a job can wait for that."""
        if name in self.quarantine.crashed or not self.foreign.can_wait(name):
            return False
        return self.system.loaded().state(name) == "coming"

    def invalidate(self, cause: Cause) -> None:
        """Drop what no longer holds, by INVALIDATIONS."""
        drop = INVALIDATIONS[cause]
        if drop.plans:
            self.system.drop_plans()
        elif drop.loaded:
            self.system.drop_loaded()
        if drop.batches:
            self.stop_batches()
        if drop.results == "index":
            self.results.forget_index()
        elif drop.results == "modules":
            self.results.forget_modules()
        elif drop.results == "denied":
            self.results.forget_denied()
        if drop.missing_files:
            self.retries.forget_files()
        if drop.devices:
            self.queue.request_replay("all")

    def stop_batches(self, *, older_than: int | None = None) -> None:
        """Have loaders end after their current step; `older_than`: those whose batch is of an earlier generation."""
        for batch in self.in_flight.batches.values():
            if (older_than is None or batch.generation != older_than) and batch.stop():
                self.emit(StopBatch(batch.number))
