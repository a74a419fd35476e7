"""What the answer of a loader means for its batch, and for the modules that count as loaded: `Replies`."""

from __future__ import annotations

from kmodd.dataclass import replace
from kmodd.engine.batch import Batch
from kmodd.engine.events import AnyJob, LoaderDied, LoaderReplied
from kmodd.engine.scheduler import Scheduler
from kmodd.engine.state import EngineState
from kmodd.kernel.kmsg import crash_lines
from kmodd.planning.job import Job
from kmodd.planning.outcome import DEPENDENCY_REMOVED, Outcome
from kmodd.planning.plan import Insmod
from kmodd.planning.record import after_all
from kmodd.planning.reply import outcome_of, outcome_of_death


class Replies:
    """Reads the answers of loaders."""

    def __init__(self, state: EngineState, scheduler: Scheduler) -> None:
        self._state = state
        self._scheduler = scheduler

    def take(self, event: LoaderReplied | LoaderDied) -> None:
        """A loader has finished a step, or ended at it."""
        state = self._state
        if isinstance(event, LoaderReplied):
            if event.reply.stage not in ("command", "signal"):
                state.supply.succeed()
            begun = event.reply.stage != "none"
        else:
            begun = event.begun
        if state.firmware.has(event.batch):
            state.firmware.ended(event.batch, state.now, begun=isinstance(event, LoaderReplied) or event.begun)
            return
        batch = state.in_flight.batches.get(event.batch)
        if batch is None:
            return
        is_over = not isinstance(event, LoaderReplied) or event.reply.errno != 0 or batch.is_last
        job, was = batch.job, batch.state
        if begun:
            job.begin()
        if is_over:
            state.in_flight.remove(batch)
            if was == "running":
                state.in_flight.put_back(batch)
        self._update_loaded(batch, event)
        outcome = state.policy.note(self._outcome(batch, event)) if begun else None
        if outcome:
            state.policy.spend(outcome)
        if outcome and was == "running":
            batch.catch_up()
            outcome = self._blame_removal(outcome, job)
        if not is_over:
            batch.next_step(state.now)
        if was == "running":
            self._scheduler.step_ended(job, outcome, batch, is_over=is_over)
        elif outcome:
            self._ended_late(outcome, counted_as_loaded=was == "stalled")
        elif was == "stuck":
            state.invalidate("late_result")  # its loader was late, and the module was never tried

    def _update_loaded(self, batch: Batch, event: LoaderReplied | LoaderDied) -> None:
        """Follow what the step has done to the list of loaded modules."""
        if not isinstance(batch.step, Insmod):
            self._state.invalidate("command_ran")  # a command may remove modules, too
        elif isinstance(event, LoaderReplied) and not event.reply.errno:
            self._state.system.mark_loaded(batch.module)
        else:
            self._state.invalidate("load_failed")

    def _outcome(self, batch: Batch, event: LoaderReplied | LoaderDied) -> Outcome:
        """The outcome of the current step of a batch."""
        state, step, request = self._state, batch.step, batch.job.plan.request
        if isinstance(event, LoaderReplied):
            reply = event.reply
            if reply.stage == "signal" and not state.system.extensions.install_signal_is_failure:
                reply = replace(reply, errno=0)  # kmod looks at the exit status alone (libkmod, command_do)
            return outcome_of(request, step, reply, state.machine.facts() if reply.errno else None)
        outcome = outcome_of_death(request, step, state.machine.loaded().state(step.module), batch.usec(state.now))
        if outcome.result != "crashed":
            return outcome
        state.quarantine.crash(step.module)
        lines = crash_lines(event.kernel_log)
        return replace(outcome, evidence=(("KMODD_KERNEL_LOG", "\n".join(lines)),)) if lines else outcome

    def _blame_removal(self, outcome: Outcome, job: AnyJob) -> Outcome:
        """Say so where the kernel has refused the module because another one was removed since it was planned."""
        if outcome.result != "failed" or not outcome.by_kernel or not isinstance(job, Job):
            return outcome
        loaded = self._state.machine.loaded()
        is_whole = all(loaded.state(name) == "live" for name in job.leans_on())
        return outcome if is_whole else replace(outcome, detail=DEPENDENCY_REMOVED)

    def _ended_late(self, outcome: Outcome, *, counted_as_loaded: bool) -> None:
        """A load that was given up has ended: what depended on it is tried again."""
        state = self._state
        if counted_as_loaded and outcome.ok:
            state.reporter.log(after_all(outcome))
            return
        late = replace(outcome, detail=outcome.detail or "after it was given up")
        state.reporter.log_outcomes([late])
        state.invalidate("late_result")
