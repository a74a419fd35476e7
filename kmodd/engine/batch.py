"""The steps that one loader has, and how far they are: a `Batch`."""

from __future__ import annotations

from kmodd.dataclass import dataclass
from kmodd.engine.events import AnyJob, LoaderLook
from kmodd.planning.job import Job
from kmodd.planning.outcome import Outcome
from kmodd.planning.plan import Insmod, RemovalStep, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    BatchState = Literal["running", "stuck", "stalled", "detached", "done"]
else:
    BatchState = str

ASLEEP_AFTER = 0.003
"""Seconds between the first and the last look at a loader asleep after which it counts as sleeping."""

UNKNOWN = -1
"""In place of a loader's processor time before it was looked at."""

SEEN_FOR = 0.05
"""Seconds for which a look counts."""

ANSWER_LIMIT = 10.0
"""Seconds to wait for the kernel stack of a loader that does not return: RuntimeMaxSec= of kmodd-stack@.service."""


@dataclass(slots=True, eq=False)
class Batch:
    """One step, or a run of files that a loader takes one after the other.

    | state    | event                                    | next     | what the job of the step gets            |
    | running  | reply to a step that is not the last     | running  | the step's outcome                       |
    | running  | last reply, failed step, loader died     | done     | the step's outcome                       |
    | running  | step not begun                           | done     | nothing; its step is started again       |
    | running  | overdue, the module is not live          | stuck    | "stuck", at once                         |
    | running  | overdue, the module is live              | stalled  | "loaded", at once                        |
    | stuck    | reply to a step that is not the last     | detached | nothing; a late record                   |
    | stalled  | reply to a step that is not the last     | detached | nothing; a late record                   |
    | stuck    | last reply, failed step, loader died     | done     | nothing; a late record                   |
    | stuck    | step not begun                           | done     | nothing; devices are asked for again     |
    | stalled  | step not begun                           | done     | nothing                                  |
    | stalled  | last reply, failed step, loader died     | done     | nothing; a late record                   |
    | detached | reply to a step that is not the last     | detached | nothing; a late record                   |
    | detached | last reply, failed step, loader died     | done     | nothing; a late record                   |
    | detached | step not begun                           | done     | nothing                                  |

    A batch that leaves `running` before its end has its loader stopped after the current step, and the jobs of the
    steps behind it are planned or started again.
    """

    number: int
    jobs: tuple[AnyJob, ...]
    """The job of each step; the steps of one job are consecutive."""
    steps: tuple[Step | RemovalStep, ...]
    generation: int
    """SystemState.generation for which the jobs that have not begun were planned."""
    since: float
    """Start of the current step (monotonic, seconds)."""
    pid: int = 0
    """The loader's; 0: not known yet."""
    done: int = 0
    """Number of finished steps."""
    state: BatchState = "running"
    stopping: bool = False
    """The loader was told to end after the current step."""
    answer_by: float | None = None
    """When to stop waiting for the stack (monotonic, seconds); None: it was not asked for."""
    stack: tuple[str, ...] = ()
    asleep_since: float | None = None
    """First of the looks at the loader since which it has slept (monotonic, seconds); None: the last saw it awake."""
    seen_at: float = 0.0
    """The last look at the loader (monotonic, seconds)."""
    _ticks: int = UNKNOWN
    """Processor time of the loader at that look, in clock ticks."""

    @property
    def job(self) -> AnyJob:
        """The job of the current step."""
        return self.jobs[self.done]

    @property
    def step(self) -> Step | RemovalStep:
        """The current step."""
        return self.steps[self.done]

    @property
    def module(self) -> str:
        """The module of the current step."""
        return self.step.module

    @property
    def path(self) -> str:
        """The file of the current step; empty for a step without one."""
        return self.step.path if isinstance(self.step, Insmod) else ""

    @property
    def is_last(self) -> bool:
        """The current step is the last one."""
        return self.done + 1 == len(self.steps)

    @property
    def is_awaited(self) -> bool:
        """Jobs wait for it."""
        return self.state == "running"

    @property
    def hangs(self) -> bool:
        """The step that its job did not wait for has not returned."""
        return self.state in ("stuck", "stalled")

    def is_interactive(self) -> bool:
        """A caller waits for the current job."""
        return self.job.plan.request.is_interactive

    def later_jobs(self) -> list[AnyJob]:
        """The jobs behind the current one, each once, in order."""
        jobs: list[AnyJob] = []
        for job in self.jobs[self.done :]:
            if job is not (jobs[-1] if jobs else self.job):
                jobs.append(job)
        return jobs

    def unstarted_jobs(self) -> list[AnyJob]:
        """The jobs none of whose steps has begun, each once, in order."""
        return [*([] if self.job.begun else [self.job]), *self.later_jobs()]

    def next_step(self, now: float) -> None:
        """The loader has finished the current step and goes on with the next one."""
        self.done += 1
        self.since, self.answer_by, self.stack, self.asleep_since = now, None, (), None
        if self.state != "running":
            self.state = "detached"

    def give_up(self, *, is_live: bool) -> None:
        """The current step is overdue: its job goes on without it."""
        self.state = "stalled" if is_live else "stuck"

    def end(self) -> None:
        """The loader has no further step of it."""
        self.state = "done"

    def stop(self) -> bool:
        """Note that the loader is to end after the current step. False: it was told before, or ends there anyway."""
        if self.stopping or self.is_last:
            return False
        self.stopping = True
        return True

    def see(self, look: LoaderLook, now: float) -> None:
        """The loader was looked at, at `now` (monotonic, seconds). One that has run since the last look is awake."""
        has_run = self._ticks not in (UNKNOWN, look.ticks)
        if has_run or not look.is_asleep:
            self.asleep_since = None
        elif self.asleep_since is None:
            self.asleep_since = now
        self.seen_at, self._ticks = now, look.ticks

    def sleeps(self, now: float) -> bool:
        """Whether the loader has been asleep in its current step for a while, as far as it was looked at."""
        slept = 0.0 if self.asleep_since is None else self.seen_at - self.asleep_since
        return slept >= ASLEEP_AFTER and now <= self.seen_at + SEEN_FOR

    def name_loader(self, pid: int) -> None:
        """The loader has told its process number."""
        self.pid = pid

    def ask_stack(self, now: float) -> bool:
        """Begin to wait for the stack. False: it cannot be asked for."""
        self.answer_by = now + ANSWER_LIMIT if self.pid else 0.0
        return self.pid != 0

    @property
    def is_asking(self) -> bool:
        """The stack was asked for, and is not read."""
        return bool(self.answer_by)

    def read_stack(self, frames: tuple[str, ...]) -> None:
        """The stack was read, or cannot be."""
        self.stack, self.answer_by = frames, 0.0

    def usec(self, now: float) -> int:
        """Duration of the current step so far, in µs."""
        return int((now - self.since) * 1e6)

    def catch_up(self) -> None:
        """Count what the current job has before its step as live: it came with the files before."""
        job, at = self.job, self.step
        if isinstance(job, Job):
            request = job.plan.request
            job.next_step(lambda step: None if step is at else Outcome(request, step.module, "live", step.because))
