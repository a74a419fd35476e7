"""What is under way: which step is with which loader, and which jobs wait for a load in flight.

One load of a name is in flight at a time, over all lanes: whoever else wants the module waits for what comes of it.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass, field
from kmodd.loader.kernel_stack import StackQuestion
from kmodd.loader.pool import Loader
from kmodd.planning.job import Job
from kmodd.planning.plan import RemovalStep, Step
from kmodd.planning.removal import RemovalJob
from kmodd.planning.request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

AnyJob = Job | RemovalJob

MAX_INTERACTIVE = 50
"""Lanes for requests that somebody waits for; the kernel itself asks for no more at a time (kernel/module/kmod.c)."""

MAX_READY = 4
"""Jobs of devices that are planned ahead: what comes now has to wait for them."""

MAX_PARKED = 256
"""Jobs of devices that wait for a module in flight; beyond, requests stay in the backlog."""


@dataclass(slots=True, eq=False)
class Batch:
    """What is with a loader: one step, or a run of files of which it does one after the other."""

    lane: Loader
    jobs: tuple[AnyJob, ...]
    """Whose each of the steps is; those of one job follow each other."""
    steps: tuple[Step | RemovalStep, ...]
    age: int
    """Of the view that the jobs stand on which are not begun yet."""
    since: float
    """time.monotonic at the start of the present step."""
    done: int = 0
    """How many of the steps."""
    let_go: bool = False
    """It is stuck, and its job has gone on without it; what comes of it is told when it comes."""
    hangs: bool = False
    """And it has not come yet."""
    was_live: bool = False
    """And its module was live by then, and counted as loaded."""
    question: StackQuestion | None = None
    """Where the kernel was asked where it hangs."""
    answer_by: float | None = None
    """time.monotonic; None: it has not been asked."""
    stack: tuple[str, ...] = ()

    @property
    def job(self) -> AnyJob:
        """Whose the present step is."""
        return self.jobs[self.done]

    @property
    def step(self) -> Step | RemovalStep:
        """The present one."""
        return self.steps[self.done]

    @property
    def module(self) -> str:
        """What it loads or removes."""
        return self.step.module

    @property
    def is_last(self) -> bool:
        """Nothing comes after the present step."""
        return self.done + 1 == len(self.steps)

    def later(self) -> list[AnyJob]:
        """The jobs whose turn has not come, in their order."""
        jobs: list[AnyJob] = []
        for job in self.jobs[self.done :]:
            if job is not (jobs[-1] if jobs else self.job):
                jobs.append(job)
        return jobs

    def go_on(self, now: float) -> None:
        """The loader has begun with the next step."""
        self.done += 1
        self.since, self.answer_by, self.stack = now, None, ()
        self.hangs = False


@dataclass(slots=True)
class InFlight:
    """All of it."""

    batches: dict[Loader, Batch] = field(default_factory=dict)
    parked: list[tuple[str, AnyJob]] = field(default_factory=list)
    ready: list[tuple[int, AnyJob]] = field(default_factory=list)
    """Jobs of devices that were planned while no lane was free for them, each with the age of the view it stands on."""

    def has_room(self) -> bool:
        """One more request of a device may be planned."""
        return len(self.ready) < MAX_READY and self.parked_places() < MAX_PARKED

    def places(self) -> int:
        """Works that hold a place in the serial lane."""
        return sum(not batch.let_go and not batch.job.plan.request.waited_for for batch in self.batches.values())

    def parked_places(self) -> int:
        """Jobs that would hold one, had they not to wait for a load in flight."""
        return sum(not job.plan.request.waited_for for _, job in self.parked)

    def serves_devices(self) -> bool:
        """Some of it is for devices or the boot list."""
        return self.places() + self.parked_places() + len(self.ready) > 0

    def own(self) -> int:
        """Works on lanes of their own."""
        return sum(not batch.let_go and batch.job.plan.request.waited_for for batch in self.batches.values())

    def own_requests(self) -> list[Request]:
        """What somebody waits for: under way or parked."""
        jobs = (*(batch.job for batch in self.busy()), *(job for _, job in self.parked))
        return [job.plan.request for job in jobs if job.plan.request.waited_for]

    def has_operator(self) -> bool:
        """An operator's job is under way: the next one has to see what comes of it."""
        return any(request.origin == "operator" for request in self.own_requests())

    def busy(self) -> list[Batch]:
        """Works that somebody waits for still."""
        return [batch for batch in self.batches.values() if not batch.let_go]

    def stuck(self) -> list[str]:
        """Names in flight that nobody waits for any more."""
        return [batch.module for batch in self.batches.values() if batch.hangs]

    def is_taken(self, name: str, job: AnyJob) -> bool:
        """Its load is in flight, and worth waiting for by `job`.

        What comes later in a run is, too, but not for the kernel's requests: an init of that very run may be the asker;
        and for others that somebody waits for only where its device has its turn: what is before it may take long.
        """
        origin, waited_for = job.plan.request.origin, job.plan.request.waited_for
        for batch in self.batches.values():
            if batch.let_go:
                continue
            coming = batch.steps[batch.done : batch.done + 1 if origin == "request" else None]
            for step, its_job in zip(coming, batch.jobs[batch.done :], strict=False):
                if step.module == name and (its_job is batch.job or not waited_for):
                    return True
        return False

    def hangs_on(self, name: str, job: AnyJob) -> bool:
        """Whether the load of `name` cannot end before `job`: an init on the way there made the kernel ask for it."""
        asker = job.plan.request.requester
        names, seen = [name], set[str]()
        while asker and names:
            seen.add(held := names.pop())
            for batch in self.busy():
                if batch.module != held:
                    continue
                if batch.lane.pid == asker.pid:
                    return True
                names += (each for each in self._asked_by(batch.lane.pid) if each not in seen)
        return False

    def _asked_by(self, pid: int) -> list[str]:
        """What is being loaded, or waited for, because this process had the kernel ask."""
        jobs = [(batch.module, batch.job) for batch in self.busy()] + self.parked
        askers = ((name, job.plan.request.requester) for name, job in jobs)
        return [name for name, asker in askers if asker and asker.pid == pid]

    def park(self, name: str, job: AnyJob) -> None:
        """`job` cannot go on before it is known what comes of `name`."""
        self.parked.append((name, job))

    def released(self, is_taken: Callable[[str, AnyJob], bool], may_go: Callable[[AnyJob], bool]) -> AnyJob | None:
        """A job that waits for nothing any more and for which there is a place; it is the caller's to drive again."""
        for entry in self.parked:
            name, job = entry
            if may_go(job) and not is_taken(name, job):
                self.parked.remove(entry)
                return job
        return None
