"""Takes jobs from step to step, to loaders, into waiting for a lane or another's load, and to their end: `Scheduler`.

What a loader said comes back here; what came of it is told when the loader has something to do again.
"""

from __future__ import annotations

import time

from kmodd.daemon import timeouts
from kmodd.daemon.dispatcher import Dispatcher
from kmodd.daemon.foreign_loads import ForeignLoads
from kmodd.daemon.in_flight import AnyJob, Batch, InFlight
from kmodd.daemon.intake import Intake
from kmodd.daemon.known import Known
from kmodd.daemon.reporter import Reporter
from kmodd.daemon.system_state import SystemState
from kmodd.dataclass import replace
from kmodd.host.kernel_facts import read_facts
from kmodd.host.kmsg_reader import KernelMessages
from kmodd.host.module_reader import read_ahead
from kmodd.host.tree import Tree
from kmodd.kernel.kmsg import crash_lines
from kmodd.loader.actions import Reply
from kmodd.loader.kernel_stack import StackQuestion
from kmodd.loader.pool import Died, Loader, LoaderPool
from kmodd.loader.protocol import MAX_STEP
from kmodd.loader.step_requests import outcome_of, outcome_of_death, request_for
from kmodd.planning.job import Job
from kmodd.planning.outcome import ASKS_FOR_ITSELF, DRY_RUN, Outcome, not_attempted
from kmodd.planning.plan import Insmod, RemovalStep, Step
from kmodd.planning.record import after_all
from kmodd.state.autoclean import Autoclean
from kmodd.state.quarantine import Quarantine
from kmodd.state.result_cache import ResultCache
from kmodd.state.retries import Retries

MAX_FILES_IN_BATCH = 16
"""Files that a loader is given at once."""
MAX_BATCH_TEXT = MAX_STEP // 8
"""Characters of their paths and options: so many fit into one datagram, however they are written in it."""


class Scheduler:
    """Holds what is under way."""

    def __init__(
        self,
        tree: Tree,
        loaders: LoaderPool | None,
        log: KernelMessages | None,
        *,
        report: Reporter,
        view: SystemState,
        standing: Quarantine,
        answers: ResultCache,
        others: ForeignLoads,
        intake: Intake,
        autoclean: Autoclean,
    ) -> None:
        """`loaders` None: a dry run, nothing is handed to anybody. `log`: what the kernel says, None: not to be had."""
        self._tree = tree
        self._loaders = loaders
        self._log = log
        self._report = report
        self._view = view
        self._guard = view.guard
        self._standing = standing
        self._answers = answers
        self._others = others
        self._intake = intake
        self._autoclean = autoclean
        self._knows = Known(view, standing, answers, self.stuck)
        self._ended: list[AnyJob] = []
        self.in_flight = InFlight()
        self.dispatcher = Dispatcher(loaders, report)
        self.retries = Retries()

    def is_taken(self, name: str, job: AnyJob) -> bool:
        """Its load is in flight, ours or another's, and worth waiting for by `job`."""
        return self.in_flight.is_taken(name, job) or name in self._others.busy()

    def stuck(self) -> list[str]:
        """Modules whose load does not end, and that nobody waits for any more."""
        return sorted({*self.in_flight.stuck(), *self._others.stuck()})

    def is_full(self) -> bool:
        """Each lane for devices has something to do."""
        return self.in_flight.places() >= self._view.settings.lanes

    def may_go(self, job: AnyJob) -> bool:
        """There is a lane for it."""
        return job.plan.request.waited_for or not self.is_full()

    def is_ahead(self, job: AnyJob) -> bool:
        """It is planned, and waits for a lane: the last one that does."""
        return bool(self.in_flight.ready) and self.in_flight.ready[-1][1] is job

    def can_resume(self) -> bool:
        """`resume` would do something now."""
        waiting = (*self.in_flight.parked, *(("", job) for _, job in self.in_flight.ready))
        return any(self.may_go(job) and not self.is_taken(name, job) for name, job in waiting)

    def resume(self) -> None:
        """Go on with what waited for a load in flight, or for a lane."""
        for job in self._resumed():
            self.tell(job)

    def _resumed(self) -> list[AnyJob]:
        """The jobs that went on."""
        jobs = []
        while job := self.in_flight.released(self.is_taken, self.may_go) or self._next_ready():
            self.drive(job)
            jobs.append(job)
        return jobs

    def _next_ready(self) -> AnyJob | None:
        """A job that was planned ahead, if there is a lane for it; one that is planned on old facts is planned anew."""
        found, stale = None, list[AnyJob]()
        while found is None and self.in_flight.ready and self.may_go(self.in_flight.ready[0][1]):
            if self.dispatcher.is_off():
                break
            age, job = self.in_flight.ready.pop(0)
            if age == self._view.age or job.begun:
                found = job
            else:
                stale.append(job)
        for each in reversed(stale):
            self._plan_anew(each)
        return found

    def _plan_anew(self, job: AnyJob) -> None:
        """Its request is the next one to be taken; that it was drift has been told."""
        self._intake.again(replace(job.plan.request, drift=False), first=True)

    @property
    def lanes(self) -> tuple[Loader, ...]:
        """Connections to loaders, to be watched."""
        return (*self.in_flight.batches, *(self._loaders.idle if self._loaders else ()))

    @property
    def questions(self) -> tuple[StackQuestion, ...]:
        """Where the kernel was asked where it hangs, to be watched."""
        return tuple(batch.question for batch in self.in_flight.batches.values() if batch.question)

    def heard_stack(self, question: StackQuestion) -> None:
        """There is something of an answer."""
        for batch in self.in_flight.batches.values():
            if batch.question is question:
                timeouts.heard_stack(batch)

    def heard(self, lane: Loader) -> None:
        """A loader said something or is gone."""
        if lane not in self.lanes:
            return  # let go of earlier in this round
        heard = lane.receive()
        if isinstance(heard, Died) and self._loaders:
            self._loaders.lost(lane)
        if heard is None or lane not in self.in_flight.batches:
            return
        batch = self.in_flight.batches[lane]
        timeouts.drop_question(batch)
        is_over = isinstance(heard, Died) or heard.errno != 0 or batch.is_last
        begun = heard.begun if isinstance(heard, Died) else heard.stage != "none"
        job = batch.job
        job.begun = job.begun or begun
        if is_over:
            del self.in_flight.batches[lane]
            self.dispatcher.over(lane, answered=isinstance(heard, Reply))
            if not batch.let_go:
                self._put_back(batch)
        if isinstance(heard, Reply) and not heard.errno and isinstance(batch.step, Insmod):
            self._view.came(batch.module)
        elif isinstance(batch.step, Insmod):
            self._view.forget_loaded()
        else:
            self._view.outdate()  # a command, too, may take modules out
        outcome = self._guard.note(self._outcome(batch, heard)) if begun else None
        if outcome and not batch.let_go:
            self._catch_up(batch)
        if not is_over:
            batch.go_on(time.monotonic())
        if outcome and batch.let_go:
            self._came_late(batch, outcome)
        elif not batch.let_go:
            self._go_on(job, outcome, batch, is_over)

    def give_up(self, batch: Batch, outcome: Outcome) -> None:
        """Its load takes too long: its job goes on with `outcome`, the other jobs of the run without this loader."""
        batch.job.begun = True
        self._catch_up(batch)
        self._put_back(batch)
        self._go_on(batch.job, outcome, batch, is_over=True)

    def _put_back(self, batch: Batch) -> None:
        """The jobs whose files of its run are not begun wait for a lane again, and are the next to have one."""
        jobs = [*([] if batch.job.begun else [batch.job]), *batch.later()]
        self.in_flight.ready[:0] = [(batch.age, job) for job in jobs]

    def _go_on(self, job: AnyJob, outcome: Outcome | None, batch: Batch, is_over: bool) -> None:
        """A step of a job has come out, or was not begun. `is_over`: the loader of `batch` has nothing more to do."""
        if outcome:
            job.finish(outcome)
        others = []
        if (is_over or batch.job is not job) and job.begun:
            self.drive(job)
        if is_over:
            others = self._resumed()  # the loader first, then what there is to tell
        for each in (job, *others) if job.begun else others:
            self.tell(each)

    def _catch_up(self, batch: Batch) -> None:
        """The loader was at this file: what its job has before it had come with the files before."""
        job = batch.job
        if isinstance(job, Job):
            request, at = job.plan.request, batch.step
            job.next_step(lambda step: None if step is at else Outcome(request, step.module, "live", step.because))

    def _came_late(self, batch: Batch, outcome: Outcome) -> None:
        """A load that was called stuck has ended: what gave up on it may be asked for again."""
        if batch.was_live and outcome.ok:
            self._report.tell(after_all(outcome))
            return
        self._report.outcomes(
            [replace(outcome, detail=outcome.detail or "it had been given up waiting for")], self._answers
        )
        self._answers.forget_modules()
        self._intake.replay = "all"

    def take_ended(self) -> list[AnyJob]:
        """The jobs that are through since this was asked last."""
        ended, self._ended = self._ended, []
        return ended

    def stop_runs(self) -> None:
        """What was allowed may be another matter now: it is asked again before each file that is left of a run."""
        self._view.outdate()
        for lane, batch in self.in_flight.batches.items():
            if not batch.is_last:
                lane.stop()

    def stop_stale(self) -> None:
        """A run is not gone on with where a module has gone since it was planned: a later file may need it again.

        Jobs that are not begun are planned anew.
        """
        for lane, batch in self.in_flight.batches.items():
            if batch.age != self._view.age and not lane.stopped and not batch.is_last:
                lane.stop()

    def _next_step(self, job: AnyJob) -> Step | RemovalStep | None:
        if isinstance(job, Job):
            return job.next_step(lambda step: self._knows.outcome(job.plan.request, step))
        return job.next_step()

    def drive(self, job: AnyJob) -> None:
        """Go on with a job, until it is through, with a loader, or has to wait for a lane or another's load."""
        if self._loaders is None:
            job.abandon(DRY_RUN)
        while step := self._next_step(job):
            if self.is_taken(step.module, job) or (isinstance(step, Insmod) and self._others.notice(step.module)):
                if self.in_flight.hangs_on(step.module, job):
                    job.finish(not_attempted(job.plan.request, step, ASKS_FOR_ITSELF))
                    continue
                self.in_flight.park(step.module, job)
                break
            steps = self._run(job) or (step,)
            if not self.may_go(job):
                self.in_flight.ready.append((self._view.age, job))
                break
            joined = self._joined(job, steps)
            jobs = [job] * len(steps)
            for each, files in joined:
                jobs += [each] * len(files)
                steps = (*steps, *files)
            try:
                lane = self.dispatcher.start(request_for(steps, self._tree.real))
            except ValueError as error:  # longer than a loader takes
                job.abandon(str(error))
                continue
            if lane is not None:
                del self.in_flight.ready[: len(joined)]
                self.in_flight.batches[lane] = Batch(lane, tuple(jobs), steps, self._view.age, time.monotonic())
                job.begun = job.begun or job.plan.request.waited_for  # nobody plans these anew
                break
            if not job.plan.request.waited_for:
                # Requests wait, nobody is turned away: it is planned anew once there is a loader.
                self._plan_anew(job)
                break
            job.abandon(self.dispatcher.why)
        else:
            self._end(job)

    def _run(self, job: AnyJob) -> tuple[Insmod, ...]:
        """The files that a loader can be given at once now; none where the job's next step is no file."""
        if not isinstance(job, Job):
            return ()
        request = job.plan.request

        def may(step: Insmod) -> bool:
            taken = self.is_taken(step.module, job) or self._others.notice(step.module)
            return not taken and self._knows.outcome(request, step) is None

        files, size = job.run(may, MAX_FILES_IN_BATCH), 0
        for count, file in enumerate(files):
            size += _size(file)
            if count and size > MAX_BATCH_TEXT:
                return files[:count]
        return files

    def _joined(self, job: AnyJob, steps: tuple[Step | RemovalStep, ...]) -> list[tuple[Job, tuple[Insmod, ...]]]:
        """What else the loader is given with `steps`: files of jobs that would wait for it, as far as they are ready.

        So nobody has to wake up between one device's module and the next one's. Of several lanes, the one that is free
        first takes them: none may stand idle while a job waits behind a slow init.
        """
        found: list[tuple[Job, tuple[Insmod, ...]]] = []
        if job.plan.request.waited_for or self._view.settings.lanes > 1:
            return found
        names, size = {step.module for step in steps}, sum(map(_size, steps))
        for age, other in self.in_flight.ready if isinstance(steps[0], Insmod) else ():
            if age != self._view.age or not isinstance(other, Job):
                break
            step = self._next_step(other)
            if step is None or self.is_taken(step.module, other) or self._others.notice(step.module):
                break
            files = tuple(file for file in self._run(other) if file.module not in names)
            size += sum(map(_size, files))
            if not files:
                break
            names.update(file.module for file in files)
            if len(names) > MAX_FILES_IN_BATCH or size > MAX_BATCH_TEXT:
                break
            found.append((other, files))
        return found

    def read_ahead(self, job: AnyJob) -> None:
        """Have the disk read what a job that was just planned will need, but for what a loader is at already."""
        is_at_it = self._is_with_a_loader(job)
        if isinstance(job, Job) and (is_at_it or self._is_ready(job)):
            files = dict.fromkeys(step.path for step in job.plan.steps if isinstance(step, Insmod))
            for path in list(files)[is_at_it:]:
                read_ahead(self._tree.real(path))

    def _is_ready(self, job: AnyJob) -> bool:
        return any(job is ready for _, ready in self.in_flight.ready)

    def _is_with_a_loader(self, job: AnyJob) -> bool:
        return any(job is batch.job for batch in self.in_flight.batches.values())

    def tell(self, job: AnyJob) -> None:
        """Say what has come of it since."""
        if not job.begun and (self._is_ready(job) or self._is_with_a_loader(job)):
            return  # it may be planned anew
        if untold := job.untold():
            now = time.monotonic()
            for outcome in untold:
                self._autoclean.saw(outcome, now)
            self._report.outcomes(untold, self._answers)

    def _end(self, job: AnyJob) -> None:
        request, now = job.plan.request, time.monotonic()
        if isinstance(job, Job):
            if not request.waited_for:  # an operator's parameters, a process's rights: others may fare otherwise
                self._answers.learn(request.text, job.outcomes, now)
                self._intake.boot_left.discard(request.text)  # a device may have joined it, in its stead
            if self.retries.after(request, job.outcomes, now):
                self._answers.forget(request.text)
        else:
            self._answers.forget_modules()
        self._ended.append(job)

    def _outcome(self, batch: Batch, heard: Reply | Died) -> Outcome:
        """What a loader's answer means for its step."""
        step, request = batch.step, batch.job.plan.request
        if isinstance(heard, Reply):
            if heard.stage == "signal" and not self._view.extensions.install_signal_is_failure:
                heard = replace(heard, errno=0)  # kmod looks at the exit status alone (libkmod, command_do)
            return outcome_of(request, step, heard, read_facts(self._tree.root) if heard.errno else None)
        usec = int((time.monotonic() - batch.since) * 1e6)
        outcome = outcome_of_death(request, step, self._tree.loaded().state(step.module), usec)
        if outcome.result != "crashed":
            return outcome
        self._standing.crash(step.module)
        if self._log:
            self._log.catch_up()  # it was said before the loader died
        lines = crash_lines(self._log.last()) if self._log else ()
        return replace(outcome, evidence=(("KMODD_KERNEL_LOG", "\n".join(lines)),)) if lines else outcome


def _size(step: Step | RemovalStep) -> int:
    """Characters that a loader is told for it."""
    return len(step.path) + len(step.options) if isinstance(step, Insmod) else 0
