"""The line that every request takes: waits, is resolved, is loaded step by step, is told.

Nothing in here waits: the intake takes in, `advance` goes as far as it can, the scheduler reads what loaders reply,
`tick` does what is due by the clock. The daemon's loop calls them.
"""

from __future__ import annotations

import time

from kmodd.daemon import timeouts
from kmodd.daemon.foreign_loads import ForeignLoads
from kmodd.daemon.in_flight import MAX_INTERACTIVE, AnyJob
from kmodd.daemon.intake import Intake
from kmodd.daemon.policy_state import PolicyState
from kmodd.daemon.quarantine_file import QuarantineFile
from kmodd.daemon.reporter import Reporter
from kmodd.daemon.scheduler import Scheduler
from kmodd.daemon.system_state import SystemState
from kmodd.errors import Problem
from kmodd.host.driver_override import HUNG_AFTER, DriverOverrides
from kmodd.host.journal import Journal
from kmodd.host.kmsg_reader import KernelMessages
from kmodd.host.tree import Tree
from kmodd.loader.pool import LoaderPool
from kmodd.planning.job import Job
from kmodd.planning.outcome import OVERRIDDEN
from kmodd.planning.plan import Insmod
from kmodd.planning.record import INFO, RELOADED, Record
from kmodd.planning.request import Request
from kmodd.state.autoclean import Autoclean
from kmodd.state.quarantine import Quarantine
from kmodd.state.result_cache import ResultCache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

BATCH = 1024
"""Requests that are resolved without a load before the kernel's socket is looked at again."""


class Engine:
    """The backlog, the view and the work under way: all state there is, but for the kernel's."""

    def __init__(
        self,
        tree: Tree,
        journal: Journal,
        loaders: LoaderPool | None,
        log: KernelMessages | None = None,
        memory: QuarantineFile | None = None,
    ) -> None:
        """`loaders` None: a dry run, nothing is handed to anybody. `log`: what the kernel says, None: not to be had."""
        self.report = Reporter(journal)
        self.guard = PolicyState(tree.root, self.report, run=memory is not None)
        self.view = SystemState(tree, self.report, self.guard)
        self._tree = tree
        self._loaders = loaders
        self._memory = memory
        self.standing = memory.read() if memory else Quarantine()
        self.others = ForeignLoads(self.view, self.report, self.standing)
        self._answers = ResultCache()
        self._overrides = DriverOverrides(tree.root)
        self.autoclean = Autoclean()
        self.intake = Intake(self.report, self.view, self.standing, self._answers, self.autoclean)
        self.scheduler = Scheduler(
            tree, loaders, log, report=self.report, view=self.view, standing=self.standing, answers=self._answers,
            others=self.others, intake=self.intake, autoclean=self.autoclean,
        )  # fmt: skip
        self.in_flight = self.scheduler.in_flight
        self._reconcile_at = time.monotonic() + self.view.settings.reconcile_every

    # -- what state it is in -----------------------------------------------------------------------------------

    @property
    def can_advance(self) -> bool:
        """`advance` would do something now."""
        if self.view.snapshot is None or self.scheduler.dispatcher.is_off():
            return False
        return self.scheduler.can_resume() or self._has_turn() or self._has_place()

    def _has_turn(self) -> bool:
        turns = self.intake.turns
        return (
            bool(turns)
            and self.in_flight.own() < MAX_INTERACTIVE
            and turns.has(operators=not self.in_flight.has_operator())
        )

    def _has_place(self) -> bool:
        """There is a lane for a device's request, or one can be planned while the lane is busy."""
        return self.in_flight.has_room() and len(self.intake.backlog) > 0

    def _take(self) -> Request | None:
        """The next one for which there is a lane."""
        if self._has_turn():
            return self.intake.turns.take(operators=not self.in_flight.has_operator())
        return self.intake.backlog.take() if self._has_place() else None

    @property
    def idle(self) -> bool:
        """Nothing is under way, and nothing waits that could be done."""
        return not self.in_flight.busy() and not self.can_advance

    @property
    def quiet(self) -> bool:
        """Nothing is under way, nothing waits, and no replay is due: everything asked for is answered."""
        at_work = self.in_flight.busy() or self.others.busy() or self.in_flight.parked or self.in_flight.ready
        return not (at_work or len(self.intake) or self.intake.replay)

    @property
    def devices_answered(self) -> bool:
        """The same for devices and the boot list alone: what processes ask for does not count."""
        return not (self.in_flight.serves_devices() or len(self.intake.backlog) or self.intake.replay)

    def missing_files(self) -> tuple[str, ...]:
        """Where to open the module files that were not there: if they come, `files_may_have_come` is to be called."""
        return tuple(self._tree.real(path) for path in self.scheduler.retries.missing_paths())

    def boot_is_over(self) -> None:
        """All that was there at the start is answered: rules that ask for the phase may say otherwise from now on."""
        if self.guard.booting:
            self.guard.boot_is_over()
            if self.guard.mode != "off":
                self.scheduler.stop_runs()
                self._answers.forget_modules()

    def seal(self, sealed: bool) -> None:
        """What was allowed may be refused from now on, or the other way round."""
        self.guard.seal(sealed)
        self.scheduler.stop_runs()
        self._answers.forget_modules()
        self.intake.replay = self.intake.replay if sealed else "all"  # what was refused meanwhile

    # -- the view ----------------------------------------------------------------------------------------------

    def reload(self) -> Sequence[Problem]:
        """Read indexes and configuration again, as `SystemState.reload`. The answer: lines without use."""
        problems, changed = self.view.reload()
        if changed:
            self.scheduler.stop_runs()
            self._answers.forget_index()
            self.scheduler.retries.forget_files()
        if not self.view.no_tree:
            self.intake.replay = "all"
        self.autoclean.settings = self.view.settings
        if self._loaders:
            self._loaders.max_idle = self.view.settings.lanes + 1
        self._reconcile_at = min(self._reconcile_at, time.monotonic() + self.view.settings.reconcile_every)
        return problems

    def refresh(self) -> None:
        """Read again what changed on disk since it was read; nothing else costs more than a few stat calls."""
        if self.view.is_current():
            return
        is_first = self.view.snapshot is None
        self.reload()
        if not is_first and not self.view.no_tree:
            message = "The module index or configuration changed: read again"
            self.report.tell(Record(RELOADED, INFO, message))

    def files_may_have_come(self) -> None:
        """Something changed in a directory of the tree: what a missing file stopped is tried again if it is there."""
        if self.guard.mode != "off" or self.guard.sealed:
            self.scheduler.stop_runs()  # a flag may have come or gone
            self._answers.forget_modules()
        for request in self.scheduler.retries.came(self._tree.present):
            self.intake.again(request)

    # -- the line ----------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Resolve what waits, one request after the other, as far as lanes go."""
        if not (len(self.intake) or self.in_flight.parked or self.in_flight.ready or self.view.no_tree):
            return
        if self.scheduler.dispatcher.is_off():
            return
        if not self.view.watched or self.view.snapshot is None or self.view.no_tree:
            self.refresh()
        if self.view.snapshot is None:
            return
        self.scheduler.resume()
        enough = self._overrides.waited + HUNG_AFTER
        for _ in range(BATCH):
            request = self._take()
            if request is None:
                break
            if not request.waited_for and self._answers.repeats(request, time.monotonic()):
                self.report.counters.repeats += 1
                self.intake.boot_left.discard(request.text)
            else:
                job = self._begin(request)
                self.scheduler.drive(job)
                self.scheduler.read_ahead(job)
                self.scheduler.tell(job)
                if self.scheduler.is_ahead(job):
                    break  # the lanes are busy; whether one has come back is asked before the next plan
            if self.scheduler.dispatcher.is_off() or self._overrides.waited > enough:
                break

    def _begin(self, request: Request) -> AnyJob:
        """The job of a request that was just taken."""
        job = self.view.job(request)
        nothing = isinstance(job, Job) and not job.plan.goals and self.view.watched
        if nothing and not self.view.is_current(once_more=not request.waited_for and request.origin != "boot"):
            self.refresh()  # stale data is never served: no "no match" before the files were asked
            job = self.view.job(request)
        if not isinstance(job, Job) or request.origin == "operator":
            return job
        for goal in job.plan.goals:
            self.standing.asks(goal.module, request.devices)
        job.kept_out = self.standing.kept_out((goal.module for goal in job.plan.goals), request)
        look = request.origin == "reconcile" or (request.origin == "coldplug" and not self.guard.booting)
        if look and any(isinstance(entry, Insmod) for entry in job.plan.steps):
            self._reconcile(job)
        return job

    def _reconcile(self, job: Job) -> None:
        """Somebody's will stands above what a look at the devices would load."""
        request = job.plan.request
        if set(request.devices) <= self._overrides.of(request.devices):
            job.abandon(OVERRIDDEN)
        elif request.drift and not job.kept_out:
            self.report.drift(job.plan)

    # -- the clock ---------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Do what is due: loads that take too long, what others start, what is tried again, a look for drift."""
        now = time.monotonic()
        self.view.tick(now)
        self.scheduler.stop_stale()
        if self._loaders:
            limit, ask = self.view.settings.stuck_after, self._loaders.ask_stack
            for each in timeouts.overdue(self.in_flight, self._tree.loaded, limit, ask, now):
                each.batch.let_go, each.batch.hangs, each.batch.was_live = True, True, each.told is not None
                if not each.batch.is_last:
                    each.batch.lane.stop()
                self.report.outcomes([each.told] if each.told else [], self._answers)
                self.scheduler.give_up(each.batch, self.guard.note(each.outcome))
        if self.others.look(now):
            self._answers.forget_modules()
            self.intake.replay = "all"
        for request in self.scheduler.retries.due(now):
            self.intake.again(request)
        for request in self.autoclean.due(self._tree.loaded, now):
            self.intake.order(request)
        if now >= self._reconcile_at:
            self._reconcile_at = now + self.view.settings.reconcile_every
            self.intake.replay = self.intake.replay or "drift"
        if self._memory:
            self._memory.write(self.standing)

    def next_tick(self, now: float) -> float | None:
        """When (time.monotonic) `tick` has something to do; None: never."""
        times = [self._reconcile_at, timeouts.next_look(self.in_flight, self.view.settings.stuck_after, now)]
        times += [self.scheduler.retries.next_due(), self.others.next_look(), self.autoclean.next_look()]
        times.append(self.scheduler.dispatcher.next_look())
        return min((each for each in times if each is not None), default=None)

    def close(self) -> None:
        """Let the loaders go; one that is in a module's init ends after it."""
        for lane in self.in_flight.batches:
            lane.close()
        if self._loaders:
            self._loaders.close()
        if self._memory:
            self._memory.write(self.standing)
