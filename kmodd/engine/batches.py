"""Which steps one loader is given together."""

from __future__ import annotations

from kmodd.engine.batch import Batch
from kmodd.engine.events import AnyJob
from kmodd.engine.preflight import preflight_outcome
from kmodd.engine.state import EngineState
from kmodd.planning.job import Job
from kmodd.planning.plan import Insmod, RemovalStep, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    MayFollow = Callable[[Job, Step], bool]
    """Whether a file of a job can be given to a loader together with the one before it."""

MAX_FILES_IN_BATCH = 16
"""Number of files that a loader is given at once."""
MAX_BATCH_TEXT = 8192
"""Characters of their paths and options: these fit into one datagram of 64 KiB however they are encoded."""


def run_of(job: AnyJob, may_follow: MayFollow) -> tuple[Insmod, ...]:
    """The files from the current step of the job on that a loader can be given now; empty if that step is no file."""
    if not isinstance(job, Job):
        return ()
    files, size = job.run(lambda step: may_follow(job, step), MAX_FILES_IN_BATCH), 0
    if files and files[0].offered is not None:
        return files[:1]
    for count, file in enumerate(files):
        size += _size(file)
        if count and size > MAX_BATCH_TEXT:
            return files[:count]
    return files


def build_batch(state: EngineState, job: AnyJob, steps: tuple[Step | RemovalStep, ...], may_follow: MayFollow) -> Batch:
    """The batch of these steps of `job`, with the files of jobs that are planned ahead and would wait for it.

    With them no process has to wake up between one device's module and the next one's. With several lanes, or one that
    others may join, the lane that is free first takes them: none may be idle while a job waits behind a slow init.
    """
    jobs = [job] * len(steps)
    names, size = {step.module for step in steps}, sum(map(_size, steps))
    can_join = not job.plan.request.is_interactive and state.system.settings.lanes == 1 and isinstance(steps[0], Insmod)
    for generation, other in state.in_flight.ready if can_join else ():
        if generation != state.system.generation or not isinstance(other, Job):
            break
        files = _files_of(state, other, may_follow)
        new = tuple(file for file in files if file.module not in names)
        size += sum(map(_size, new))
        names.update(file.module for file in new)
        if not new or len(names) > MAX_FILES_IN_BATCH or size > MAX_BATCH_TEXT:
            break
        steps = (*steps, *new)
        jobs += [other] * len(new)
    return Batch(state.next_batch(), tuple(jobs), steps, state.system.generation, state.now)


def _files_of(state: EngineState, job: Job, may_follow: MayFollow) -> tuple[Insmod, ...]:
    """The files of another job that can follow; empty if its current step cannot."""
    step = job.next_step(lambda step: preflight_outcome(state, job.plan.request, step))
    return run_of(job, may_follow) if step and may_follow(job, step) else ()


def _size(step: Step | RemovalStep) -> int:
    """Characters of the step in a datagram."""
    return len(step.path) + len(step.options) if isinstance(step, Insmod) else 0
