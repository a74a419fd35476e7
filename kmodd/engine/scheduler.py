"""Takes jobs from step to step: to a loader, into waiting for one or for a load, and to their end. `Scheduler`."""

from __future__ import annotations

from kmodd.dataclass import replace
from kmodd.engine.batch import Batch
from kmodd.engine.batches import build_batch, run_of
from kmodd.engine.events import AnyJob, LookAtLoaders, ReadAhead, StartBatch
from kmodd.engine.preflight import preflight_outcome
from kmodd.engine.state import EngineState
from kmodd.planning.job import Job
from kmodd.planning.outcome import ASKS_FOR_ITSELF, DRY_RUN, Outcome, not_attempted
from kmodd.planning.plan import Insmod, RemovalStep, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

NAMED = ("pci", "usb", "scsi", "mmc", "virtio")
"""Subsystems whose devices have names that a person knows."""


class Scheduler:
    """Decides which step goes to a loader next."""

    def __init__(self, state: EngineState, *, dry_run: bool) -> None:
        """`dry_run`: no batch is started."""
        self._state = state
        self._dry_run = dry_run

    # -- which job is next -------------------------------------------------------------------------------------

    def can_resume(self) -> bool:
        """Whether a job that waits for a load or a loader can go on."""
        in_flight = self._state.in_flight
        if not (in_flight.parked or in_flight.ready):
            return False
        has_lane = not self._state.is_full()
        if in_flight.ready and has_lane:
            return True
        is_free = self._freedom(has_lane=has_lane)
        return any(is_free(name, job) for name, _, job in in_flight.parked)

    def resume(self) -> None:
        """Go on with the jobs that waited for a load that has ended, or for a loader, and log what they came to."""
        for job in self._resume():
            self.log(job)

    def _resume(self) -> list[AnyJob]:
        """Go on with those jobs. Returns them."""
        jobs = []
        while job := self._next_runnable():
            self.run(job)
            jobs.append(job)
        return jobs

    def _next_runnable(self) -> AnyJob | None:
        """Take the next job that can go on; None: there is none.

        One that has not begun and is planned on old facts is planned again: at once for a caller, else in the queue.
        """
        state, stale = self._state, list[AnyJob]()
        found = None
        while found is None and (entry := self._pop_runnable()):
            generation, job = entry
            if generation == state.system.generation or job.begun:
                found = job
            elif job.plan.request.is_interactive:
                found = state.system.job(job.plan.request)
            else:
                stale.append(job)
        for each in reversed(stale):
            self._plan_again(each)
        return found

    def _pop_runnable(self) -> tuple[int, AnyJob] | None:
        """Take the next job that can go on, with its generation: parked ones before those that are planned ahead.

        Of a run that was stopped the jobs come back in their order.
        """
        state = self._state
        if not (state.in_flight.parked or state.in_flight.ready):
            return None
        has_lane = not state.is_full()
        if released := state.in_flight.pop_released(self._freedom(has_lane=has_lane)):
            return released
        if state.in_flight.ready and has_lane and not state.supply.is_off(state.now):
            return state.in_flight.pop_ready()
        return None

    # -- a further lane ----------------------------------------------------------------------------------------

    def next_look(self) -> float | None:
        """When to look at the loaders (monotonic, seconds); None: no job waits for a lane that may open."""
        state = self._state
        at = state.lanes.next_look(state.system.settings, state.now)
        if at is None or state.supply.is_off(state.now) or not self._waits_for_lane():
            return None
        return at

    def look(self) -> None:
        """Have the loaders looked at, if that is due."""
        at = self.next_look()
        if at is not None and self._state.now >= at:
            self._state.emit(LookAtLoaders(self._state.lanes.loaders()))

    def _waits_for_lane(self) -> bool:
        """Whether a job could go on if there was a lane for it."""
        in_flight, is_free = self._state.in_flight, self._freedom(has_lane=True)
        return bool(in_flight.ready) or any(is_free(name, job) for name, _, job in in_flight.parked)

    def _plan_again(self, job: AnyJob) -> None:
        """Queue the request of the job before all others; that it was drift has been logged."""
        request = replace(job.plan.request, drift=False)
        self._state.results.forget(request.text)
        self._state.queue.add(request, first=True)

    def _has_lane(self, job: AnyJob) -> bool:
        """Whether a loader can be used for the job now: one beside the lanes for a caller, a free lane for a device."""
        return job.plan.request.is_interactive or not self._state.is_full()

    def _is_taken(self, name: str, job: AnyJob) -> bool:
        """Whether a load of `name` is under way, ours or another's, that `job` waits for."""
        return self._state.in_flight.is_taken(name, job) or name in self._state.foreign.awaited()

    def _freedom(self, *, has_lane: bool) -> Callable[[str, AnyJob], bool]:
        """Return a function that tells whether a job that waits for a module can go on, until a batch changes.

        The modules in flight are listed once for all parked jobs: with many lanes, there are many of both.
        `has_lane`: a lane for devices is free.
        """
        state = self._state
        foreign, taken = state.foreign.awaited(), dict[str, set[str]]()

        def is_free(name: str, job: AnyJob) -> bool:
            request = job.plan.request
            if not (has_lane or request.is_interactive):
                return False
            if request.origin not in taken:
                taken[request.origin] = state.in_flight.taken(request)
            return name not in taken[request.origin] and name not in foreign

        return is_free

    # -- a job's way -------------------------------------------------------------------------------------------

    def run(self, job: AnyJob) -> None:
        """Go on with a job until it is complete, with a loader, or waits for one or for another load."""
        state = self._state
        if self._dry_run:
            job.abandon(DRY_RUN)
        while step := self._next_step(job):
            if self._is_outdated(job):
                job.progress.end()  # what it has loaded is one record, what its request loads then another
                self._plan_again(job)
                return
            is_taken = self._is_taken(step.module, job)
            is_foreign = not is_taken and isinstance(step, Insmod) and state.is_starting(step.module)
            if is_taken or is_foreign:
                if state.in_flight.hangs_on(step.module, job):
                    job.finish(not_attempted(job.plan.request, step, ASKS_FOR_ITSELF))
                    continue
                if is_foreign:
                    state.foreign.follow(step.module, state.now)
                state.in_flight.park(step.module, state.system.generation, job)
            elif held := self._waits_for_turn(job):
                state.in_flight.park(held, state.system.generation, job)
            elif held == "" or not self._has_lane(job):
                state.in_flight.plan_ahead(state.system.generation, job)
            else:
                self._start(job, step)
            return
        self._end(job)

    def _waits_for_turn(self, job: AnyJob) -> str | None:
        """What a module of the boot list waits for, as one before it in its file does: a module in flight, or a lane.

        None: it has its turn. With one lane, that is by itself.
        """
        state, request = self._state, job.plan.request
        if request.origin != "boot" or state.system.settings.lanes == 1:
            return None
        return state.in_flight.place_of(lambda other: state.queue.is_earlier(other.plan.request, request))

    def _is_outdated(self, job: AnyJob) -> bool:
        """Whether a job that has begun must not go on by its plan, as indexes or configuration have changed.

        A caller's job goes on, as modprobe does with the files that it has read at its start.
        """
        if not isinstance(job, Job) or not job.begun or job.plan.request.is_interactive:
            return False
        return job.index_age != self._state.system.index_age

    def _next_step(self, job: AnyJob) -> Step | RemovalStep | None:
        """The step that the job needs a loader for; steps before it that need none are finished on the way."""
        if isinstance(job, Job):
            return job.next_step(lambda step: preflight_outcome(self._state, job.plan.request, step))
        return job.next_step()

    def _start(self, job: AnyJob, step: Step | RemovalStep) -> None:
        """Give a step, and what can go with it, to a loader."""
        state = self._state
        batch = build_batch(state, job, run_of(job, self._may_follow) or (step,), self._may_follow)
        state.in_flight.add(batch)
        state.emit(StartBatch(batch.number, batch.steps))
        if job.plan.request.is_interactive:
            job.begin()  # a caller's job is never planned again

    def _may_follow(self, job: Job, step: Step) -> bool:
        """Whether a file can be given to a loader together with the one before it."""
        if isinstance(step, Insmod) and step.offered is not None:
            return False  # a datagram for each descriptor
        if self._is_taken(step.module, job) or self._state.is_starting(step.module):
            return False
        return preflight_outcome(self._state, job.plan.request, step) is None

    def start_failed(self, batch: Batch, why: str, *, too_long: bool) -> None:
        """No loader has taken the batch.

        Requests of devices wait until there is a loader; a caller is answered, and so is what no loader can take.
        """
        state = self._state
        state.in_flight.remove(batch)
        jobs = [batch.job, *batch.later_jobs()]
        for job in reversed(jobs):
            if not (too_long and job is batch.job) and not job.plan.request.is_interactive:
                self._plan_again(job)
        if too_long or batch.job.plan.request.is_interactive:
            batch.job.abandon(why)
            self.run(batch.job)
            self.log(batch.job)

    def step_ended(self, job: AnyJob, outcome: Outcome | None, batch: Batch, *, is_over: bool) -> None:
        """A step of `job` has ended, or was not begun (None). `is_over`: the batch's loader has nothing more to do."""
        if outcome:
            job.progress.start(self._state.now - outcome.duration_usec / 1e6)
            job.finish(outcome)
        resumed: list[AnyJob] = []
        if (is_over or batch.job is not job) and job.begun:
            self.run(job)
        if is_over:
            resumed = self._resume()  # loaders first, then the journal
        for each in (job, *resumed) if job.begun else resumed:
            self.log(each)

    def give_up(self, batch: Batch, outcome: Outcome, *, is_live: bool) -> None:
        """The current step is overdue: its job goes on with `outcome`, the later jobs without this loader."""
        batch.job.begin()
        batch.give_up(is_live=is_live)
        batch.catch_up()
        self._state.in_flight.put_back(batch)
        self.step_ended(batch.job, outcome, batch, is_over=True)

    # -- its end -----------------------------------------------------------------------------------------------

    def log(self, job: AnyJob) -> None:
        """Write the outcomes that the job has come to since the last time."""
        state = self._state
        if not job.begun and state.in_flight.is_waiting(job):
            return  # it may be planned again
        outcomes = job.pop_outcomes()
        for outcome in outcomes:
            state.autoclean.saw(outcome, state.system.settings, state.now)
        state.reporter.log_job(job, outcomes, state.results)

    def read_ahead(self, job: AnyJob) -> None:
        """Have the disk read the files of a job that was just planned, but for the one that a loader is at."""
        running = self._state.in_flight.is_running(job)
        if isinstance(job, Job) and (running or self._state.in_flight.is_ready(job)):
            files = dict.fromkeys(step.path for step in job.plan.steps if isinstance(step, Insmod) and not step.foreign)
            if paths := tuple(files)[running:]:
                self._state.emit(ReadAhead(paths))
            request = job.plan.request
            if request.origin == "uevent" and not request.synthetic and request.subsystem in NAMED:
                self._state.emit(ReadAhead((), request.devices))

    def _end(self, job: AnyJob) -> None:
        """The job is complete: remember its result, and have who waits for it answered."""
        state, request = self._state, job.plan.request
        job.progress.end()
        if not isinstance(job, Job):
            state.invalidate("removal_ended")
        else:
            if not request.is_interactive:  # an operator's parameters, a process's rights: others may fare otherwise
                state.results.note_obstacles(job.outcomes)
                if job.results_age == state.results.age:
                    state.results.learn(request.text, job.outcomes, state.now)
                state.queue.answer_boot(request.text)  # a device may have joined the boot list's request
            if state.retries.after(request, job.outcomes, state.now):
                state.results.forget(request.text)
        state.finish(job)
