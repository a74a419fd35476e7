"""The line that every request takes: waits, is resolved, is loaded step by step, is told.

Nothing in here waits: `take` and `order` put in, `advance` goes as far as it can, `heard` brings back what a loader
said, `tick` does what is due by the clock, `take_ended` gives the jobs that are through. The daemon's loop calls them.
"""

from __future__ import annotations

import errno
import time

from kmodd import outcome as telling
from kmodd import patience
from kmodd.answers import Answers
from kmodd.autoclean import Autoclean
from kmodd.dataclass import replace
from kmodd.dispatch import Dispatch
from kmodd.errors import Problem
from kmodd.flights import MOST_OWN, MOST_PARKED, AnyJob, Flights, Work
from kmodd.guard import Guard
from kmodd.host.acts import Reply
from kmodd.host.calls import call_of, outcome_of, outcome_of_death
from kmodd.host.journal import Journal
from kmodd.host.kernel_facts import read_facts
from kmodd.host.kernel_log import KernelMessages
from kmodd.host.lanes import Died, Lane, Loaders
from kmodd.host.overrides import HUNG_AFTER, Overrides
from kmodd.host.stack import StackQuestion
from kmodd.host.standing_file import StandingFile
from kmodd.host.tree import Tree
from kmodd.intake import Intake
from kmodd.job import Job
from kmodd.kernel_line import crash_lines
from kmodd.others import Others
from kmodd.outcome import Outcome, Record
from kmodd.plan import Insmod, RemovalStep, Step
from kmodd.report import Report
from kmodd.request import Request
from kmodd.retries import Retries
from kmodd.standing import Standing
from kmodd.view import View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

BATCH = 1024
"""Requests that are resolved without a load before the kernel's socket is looked at again."""


class Line:
    """The backlog, the view and the work under way: all state there is, but for the kernel's."""

    def __init__(
        self,
        tree: Tree,
        journal: Journal,
        loaders: Loaders | None,
        log: KernelMessages | None = None,
        memory: StandingFile | None = None,
    ) -> None:
        """`loaders` None: a dry run, nothing is handed to anybody. `log`: what the kernel says, None: not to be had."""
        self.report = Report(journal)
        self.guard = Guard(tree.root, self.report, run=memory is not None)
        self.view = View(tree, self.report, self.guard)
        self.flights = Flights()
        self._tree = tree
        self._loaders = loaders
        self._log = log
        self._memory = memory
        self.standing = memory.read() if memory else Standing()
        self.others = Others(self.view, self.report, self.standing)
        self._answers = Answers()
        self._overrides = Overrides(tree.root)
        self.autoclean = Autoclean()
        self.intake = Intake(self.report, self.view, self.standing, self._answers, self.autoclean)
        self._retries = Retries()
        self._ended: list[AnyJob] = []
        self.dispatch = Dispatch(loaders, self.report)
        self._reconcile_at = time.monotonic() + self.view.settings.reconcile_every

    # -- what state it is in -----------------------------------------------------------------------------------

    @property
    def can_advance(self) -> bool:
        """`advance` would do something now."""
        if self.view.snapshot is None or self.dispatch.is_off():
            return False
        parked = any(not self._is_taken(name) and self._may_go(job) for name, job in self.flights.parked)
        return parked or self._has_turn() or self._has_place()

    def _is_taken(self, name: str) -> bool:
        """Its load is in flight, ours or another's, and worth waiting for."""
        return self.flights.is_taken(name) or name in self.others.busy()

    def stuck(self) -> list[str]:
        """Modules whose load does not end, and that nobody waits for any more."""
        return sorted({*self.flights.stuck(), *self.others.stuck()})

    def _has_turn(self) -> bool:
        return self.flights.own() < MOST_OWN and self.intake.turns.has(operators=not self.flights.has_operator())

    def _has_place(self) -> bool:
        room = self.flights.places() < self.view.settings.lanes and self.flights.parked_places() < MOST_PARKED
        return room and len(self.intake.backlog) > 0

    def _take(self) -> Request | None:
        """The next one for which there is a lane."""
        if self._has_turn():
            return self.intake.turns.take(operators=not self.flights.has_operator())
        return self.intake.backlog.take() if self._has_place() else None

    def _may_go(self, job: AnyJob) -> bool:
        """A parked job may have its lane back."""
        return job.plan.request.waited_for or self.flights.places() < self.view.settings.lanes

    @property
    def idle(self) -> bool:
        """Nothing is under way, and nothing waits that could be done."""
        return not self.flights.busy() and not self.can_advance

    @property
    def quiet(self) -> bool:
        """Nothing is under way, nothing waits, and no replay is due: everything asked for is answered."""
        at_work = self.flights.busy() or self.others.busy() or self.flights.parked
        return not (at_work or len(self.intake) or self.intake.replay)

    @property
    def devices_answered(self) -> bool:
        """The same for devices and the boot list alone: what processes ask for does not count."""
        return not (self.flights.serves_devices() or len(self.intake.backlog) or self.intake.replay)

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """Connections to loaders, to be watched."""
        return (*self.flights.works, *(self._loaders.idle if self._loaders else ()))

    @property
    def questions(self) -> tuple[StackQuestion, ...]:
        """Where the kernel was asked where it hangs, to be watched."""
        return tuple(work.question for work in self.flights.works.values() if work.question)

    def heard_stack(self, question: StackQuestion) -> None:
        """There is something of an answer."""
        for work in self.flights.works.values():
            if work.question is question:
                patience.heard_stack(work)

    def missing_files(self) -> tuple[str, ...]:
        """Where to open the module files that were not there: if they come, `files_may_have_come` is to be called."""
        return tuple(self._tree.real(path) for path in self._retries.missing_paths())

    def boot_is_over(self) -> None:
        """All that was there at the start is answered: rules that ask for the phase may say otherwise from now on."""
        if self.guard.booting:
            self.guard.boot_is_over()
            if self.guard.mode != "off":
                self._answers.forget_modules()

    def seal(self, sealed: bool) -> None:
        """What was allowed may be refused from now on, or the other way round."""
        self.guard.seal(sealed)
        self._answers.forget_modules()
        self.intake.replay = self.intake.replay if sealed else "all"  # what was refused meanwhile

    # -- the view ----------------------------------------------------------------------------------------------

    def reload(self) -> Sequence[Problem]:
        """Read indexes and configuration again: all of the new or all of the old. The answer: lines without use."""
        problems, changed = self.view.reload()
        if changed:
            self._answers.forget_index()
            self._retries.forget_files()
        if not self.view.no_tree:
            self.intake.replay = "all"
        self.autoclean.settings = self.view.settings
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
            self.report.tell(Record(telling.RELOADED, telling.INFO, message))

    def files_may_have_come(self) -> None:
        """Something changed in a directory of the tree: what a missing file stopped is tried again if it is there."""
        if self.guard.mode != "off" or self.guard.sealed:
            self._answers.forget_modules()  # a flag may have come or gone
        for request in self._retries.came(self._tree.present):
            self.intake.again(request)

    # -- the line ----------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Resolve what waits, one request after the other, as far as lanes go."""
        if not (len(self.intake) or self.flights.parked or self.view.no_tree):
            return
        if self.dispatch.is_off():
            return
        if not self.view.watched or self.view.snapshot is None or self.view.no_tree:
            self.refresh()
        if self.view.snapshot is None:
            return
        while parked := self.flights.released(self._is_taken, self._may_go):
            self._drive(parked)
        enough = self._overrides.waited + HUNG_AFTER
        for _ in range(BATCH):
            request = self._take()
            if request is None:
                break
            if not request.waited_for and self._answers.repeats(request, time.monotonic()):
                self.report.counters.repeats += 1
                self.intake.boot_left.discard(request.text)
            else:
                self._drive(self._begin(request))
            if self.dispatch.is_off() or self._overrides.waited > enough:
                break

    def _begin(self, request: Request) -> AnyJob:
        """The job of a request that was just taken."""
        job = self.view.job(request)
        if isinstance(job, Job) and not job.plan.goals and self.view.watched and not self.view.is_current():
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
            job.abandon(telling.OVERRIDDEN)
        elif request.drift and not job.kept_out:
            self.report.drift(job.plan)

    def heard(self, lane: Lane) -> None:
        """A loader said something or is gone."""
        if lane not in self.lanes:
            return  # let go of earlier in this round
        heard = lane.receive()
        if isinstance(heard, Died) and self._loaders:
            self._loaders.lost(lane)
        if heard is None or lane not in self.flights.works:
            return
        work = self.flights.works.pop(lane)
        patience.drop_question(work)
        self.dispatch.over(lane, answered=isinstance(heard, Reply))
        if isinstance(heard, Reply) and not heard.errno and isinstance(work.step, Insmod):
            self.view.came(work.module)
        else:
            self.view.forget_loaded()
        if heard != Died(begun=False):
            outcome = self.guard.note(self._outcome(work, heard))
            if work.let_go:
                self._came_late(work, outcome)
                return
            work.job.finish(outcome)
        self._drive(work.job)

    def _came_late(self, work: Work, outcome: Outcome) -> None:
        """A load that was called stuck has ended: what gave up on it may be asked for again."""
        if work.was_live and outcome.ok:
            self.report.tell(telling.after_all(outcome))
            return
        self.report.outcomes(
            [replace(outcome, detail=outcome.detail or "it had been given up waiting for")], self._answers
        )
        self._answers.forget_modules()
        self.intake.replay = "all"

    def take_ended(self) -> list[AnyJob]:
        """The jobs that are through since this was asked last."""
        ended, self._ended = self._ended, []
        return ended

    def _next_step(self, job: AnyJob) -> Step | RemovalStep | None:
        if isinstance(job, Job):
            return job.next_step(lambda step: self._known(job.plan.request, step))
        return job.next_step()

    def _drive(self, job: AnyJob) -> None:
        """Go on with a job, until it is through, with a loader, or has to wait for another's load."""
        if self._loaders is None:
            job.abandon(telling.DRY_RUN)
        while step := self._next_step(job):
            if self._is_taken(step.module) or (isinstance(step, Insmod) and self.others.notice(step.module)):
                if self.flights.hangs_on(step.module, job):
                    job.finish(telling.not_attempted(job.plan.request, step, telling.ASKS_FOR_ITSELF))
                    continue
                self.flights.park(step.module, job)
                break
            ahead = job.upcoming() if isinstance(job, Job) else ""
            try:
                lane = self.dispatch.start(call_of(step, self._tree.real), ahead and self._tree.real(ahead))
            except ValueError as error:  # longer than a loader takes
                job.abandon(str(error))
                continue
            if lane is not None:
                self.flights.works[lane] = Work(lane, job, step, time.monotonic_ns())
                break
            if not job.plan.request.waited_for:
                # Requests wait, nobody is turned away: it is planned anew once there is a loader.
                self.intake.again(job.plan.request, first=True)
                break
            job.abandon(self.dispatch.why)
        else:
            self._end(job)
        for outcome in (untold := job.untold()):
            self.autoclean.saw(outcome, time.monotonic())
        self.report.outcomes(untold, self._answers)

    def _end(self, job: AnyJob) -> None:
        request, now = job.plan.request, time.monotonic()
        if isinstance(job, Job):
            if not request.waited_for:  # an operator's parameters, a process's rights: others may fare otherwise
                self._answers.learn(request.text, job.outcomes, now)
                self.intake.boot_left.discard(request.text)  # a device may have joined it, in its stead
            if self._retries.after(request, job.outcomes, now):
                self._answers.forget(request.text)
        else:
            self._answers.forget_modules()
        self._ended.append(job)

    def _outcome(self, work: Work, heard: Reply | Died) -> Outcome:
        """What a loader's answer means for its step."""
        step, request = work.step, work.job.plan.request
        if isinstance(heard, Reply):
            if heard.stage == "signal" and not self.view.beyond.install_signal_is_failure:
                heard = replace(heard, errno=0)  # kmod looks at the exit status alone (libkmod, command_do)
            return outcome_of(request, step, heard, read_facts(self._tree.root) if heard.errno else None)
        usec = (time.monotonic_ns() - work.since_ns) // 1000
        outcome = outcome_of_death(request, step, self._tree.loaded().state(step.module), usec)
        if outcome.result != "crashed":
            return outcome
        self.standing.crash(step.module)
        if self._log:
            self._log.catch_up()  # it was said before the loader died
        lines = crash_lines(self._log.last()) if self._log else ()
        return replace(outcome, evidence=(("KMODD_KERNEL_LOG", "\n".join(lines)),)) if lines else outcome

    def _known(self, request: Request, step: Step) -> Outcome | None:
        """What comes of a step that need not be tried."""
        name = step.module
        loaded = self.view.loaded()
        if loaded.state(name) == "live":
            return Outcome(request, name, "live", step.because)
        if refused := self.guard.refusal(request, step):  # rules or seal may be newer than the plan
            return refused
        if self.standing.has_crashed(name, loaded):
            detail = "before, and is not tried again until the next boot"
            return Outcome(request, name, "crashed", step.because, detail=detail)
        if name in self.stuck():
            return Outcome(request, name, "stuck", step.because, detail="since before this was asked for")
        if self.standing.is_kept_out(name, request):
            return telling.not_attempted(request, step, telling.KEPT_OUT)
        refusal = self._answers.refusal(name)
        if refusal and request.synthetic and not request.again:
            detail = f"it has refused with {errno.errorcode.get(refusal, refusal)}"
            return Outcome(request, name, "not_attempted", step.because, errno=refusal, detail=detail)
        return None

    # -- the clock ---------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Do what is due: loads that take too long, what others start, what is tried again, a look for drift."""
        now = time.monotonic()
        if self._loaders:
            limit, ask = self.view.settings.stuck_after, self._loaders.ask_stack
            for each in patience.overdue(self.flights, self._tree.loaded, limit, ask, now):
                each.work.let_go, each.work.was_live = True, each.told is not None
                self.report.outcomes([each.told] if each.told else [], self._answers)
                each.work.job.finish(self.guard.note(each.outcome))
                self._drive(each.work.job)
        if self.others.look(now):
            self._answers.forget_modules()
            self.intake.replay = "all"
        for request in self._retries.due(now):
            self.intake.again(request)
        for request in self.autoclean.due(self._tree.loaded, now):
            self.intake.order(request)
        if now >= self._reconcile_at:
            self._reconcile_at = now + self.view.settings.reconcile_every
            self.intake.replay = self.intake.replay or "drift"
        if self._memory:
            self._memory.write(self.standing)

    def next_tick(self) -> float | None:
        """When (time.monotonic) `tick` has something to do; None: never."""
        now = time.monotonic()
        times = [self._reconcile_at, patience.next_look(self.flights, self.view.settings.stuck_after, now)]
        times += [self._retries.next_due(), self.others.next_look(), self.autoclean.next_look()]
        times.append(self.dispatch.next_look())
        return min((each for each in times if each is not None), default=None)

    def close(self) -> None:
        """Let the loaders go; one that is in a module's init ends after it."""
        for lane in self.flights.works:
            lane.close()
        if self._loaders:
            self._loaders.close()
        if self._memory:
            self._memory.write(self.standing)
