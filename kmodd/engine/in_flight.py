"""The batches with loaders and the jobs that wait for one: `InFlight`.

One load of a module is in flight at a time, over all loaders: another job that needs the module waits for its outcome.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass, field
from kmodd.engine.batch import Batch
from kmodd.engine.events import AnyJob
from kmodd.kernel.requester import Requester
from kmodd.planning.request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MAX_INTERACTIVE = 50
"""Loaders for requests that a caller waits for; the kernel itself asks for no more at a time (kernel/module/kmod.c)."""

MAX_READY = 4
"""Jobs of devices that are planned ahead: a request that comes now waits behind them."""

MAX_PARKED = 256
"""Jobs of devices that wait for a module in flight; beyond, requests stay in the device queue."""


@dataclass(slots=True)
class InFlight:
    """Batches by number, parked jobs, and jobs that are planned ahead."""

    batches: dict[int, Batch] = field(default_factory=dict)
    parked: list[tuple[str, int, AnyJob]] = field(default_factory=list)
    """Jobs, each with the module that it waits for and the SystemState.generation that it was planned for."""
    ready: list[tuple[int, AnyJob]] = field(default_factory=list)
    """Jobs of devices that wait for a loader, each with the SystemState.generation that it was planned for."""

    # -- what there is -----------------------------------------------------------------------------------------

    def has_room(self) -> bool:
        """Whether one more request of a device may be planned."""
        has_place = len(self.parked) < MAX_PARKED or self._parked_devices() < MAX_PARKED
        return len(self.ready) < MAX_READY and has_place

    def serial(self) -> int:
        """Number of batches that hold one of the lanes for devices."""
        return sum(batch.is_awaited and not batch.is_interactive() for batch in self.batches.values())

    def interactive(self) -> int:
        """Number of batches for callers, each on a loader beside the lanes."""
        return sum(batch.is_awaited and batch.is_interactive() for batch in self.batches.values())

    def _parked_devices(self) -> int:
        return sum(not job.plan.request.is_interactive for _, _, job in self.parked)

    def serves_devices(self) -> bool:
        """Whether anything of it is for devices or the boot list."""
        return self.serial() + self._parked_devices() + len(self.ready) > 0

    def interactive_requests(self) -> list[Request]:
        """The requests of callers that are in flight or parked."""
        jobs = (*(batch.job for batch in self.awaited()), *(job for _, _, job in self.parked))
        return [job.plan.request for job in jobs if job.plan.request.is_interactive]

    def has_operator(self) -> bool:
        """Whether an operator's job is under way: the next one has to see its result."""
        return any(request.origin == "operator" for request in self.interactive_requests())

    def awaited(self) -> list[Batch]:
        """The batches that jobs wait for."""
        return [batch for batch in self.batches.values() if batch.is_awaited]

    def stuck(self) -> list[str]:
        """The modules whose load does not return and is not waited for."""
        return [batch.module for batch in self.batches.values() if batch.hangs]

    def is_waiting(self, job: AnyJob) -> bool:
        """Whether the job is with a loader, or waits for one or for a load."""
        return self.is_ready(job) or self.is_running(job) or any(job is parked for _, _, parked in self.parked)

    def is_ready(self, job: AnyJob) -> bool:
        """Whether the job is planned ahead."""
        return any(job is ready for _, ready in self.ready)

    def is_last_ready(self, job: AnyJob) -> bool:
        """Whether the job was the last one to be planned ahead."""
        return bool(self.ready) and self.ready[-1][1] is job

    def is_running(self, job: AnyJob) -> bool:
        """Whether a loader is at a step of the job."""
        return any(job is batch.job for batch in self.batches.values())

    def is_taken(self, name: str, job: AnyJob) -> bool:
        """Whether the load of `name` is in flight and `job` can wait for it."""
        return name in self.taken(job.plan.request)

    def taken(self, request: Request) -> set[str]:
        """The modules whose load is in flight, as far as a job of `request` can wait for it.

        The later files of a run count, too, but not for requests of the kernel: the init of an earlier file may be the
        asker; and for other interactive requests only within the current job: what is before it may take long.
        """
        origin, interactive = request.origin, request.is_interactive
        names = set[str]()
        for batch in self.awaited():
            coming = batch.steps[batch.done : batch.done + 1 if origin == "request" else None]
            for step, its_job in zip(coming, batch.jobs[batch.done :], strict=False):
                if its_job is batch.job or not interactive:
                    names.add(step.module)
        return names

    def hangs_on(self, name: str, job: AnyJob) -> bool:
        """Whether the load of `name` cannot end before `job`.

        An init, or a process of an install command, on the way made the kernel ask for `job`.
        """
        asker = job.plan.request.requester
        names, seen = [name], set[str]()
        while asker and names:
            seen.add(held := names.pop())
            for batch in self.awaited():
                if batch.module != held:
                    continue
                if _is_by(asker, batch.pid):
                    return True
                names += (each for each in self._asked_by(batch.pid) if each not in seen)
        return False

    def _asked_by(self, pid: int) -> list[str]:
        """The modules that are in flight or waited for because this process, or its command, made the kernel ask."""
        jobs = [(batch.module, batch.job) for batch in self.awaited()] + [(name, job) for name, _, job in self.parked]
        askers = ((name, job.plan.request.requester) for name, job in jobs)
        return [name for name, asker in askers if asker and _is_by(asker, pid)]

    def place_of(self, is_wanted: Callable[[AnyJob], bool]) -> str | None:
        """What the first such job waits for: a module that is in flight, or a lane (empty); None: there is none."""
        for batch in self.awaited():
            if any(map(is_wanted, (batch.job, *batch.later_jobs()))):
                return batch.module
        for name, _, job in self.parked:
            if is_wanted(job):
                return name
        return "" if any(is_wanted(job) for _, job in self.ready) else None

    def jobs(self) -> list[AnyJob]:
        """All jobs that are not complete."""
        with_loaders = [job for batch in self.awaited() for job in (batch.job, *batch.later_jobs())]
        return [*with_loaders, *(job for _, _, job in self.parked), *(job for _, job in self.ready)]

    # -- changes -----------------------------------------------------------------------------------------------

    def add(self, batch: Batch) -> None:
        """The batch goes to a loader; jobs that were ready and have joined it are ready no longer."""
        self.batches[batch.number] = batch
        self.ready = [entry for entry in self.ready if not any(entry[1] is job for job in batch.jobs)]

    def remove(self, batch: Batch) -> None:
        """The batch has ended."""
        del self.batches[batch.number]
        batch.end()

    def park(self, name: str, generation: int, job: AnyJob) -> None:
        """The job cannot go on before the load of `name` has ended."""
        self.parked.append((name, generation, job))

    def plan_ahead(self, generation: int, job: AnyJob) -> None:
        """The job waits for a loader, behind the others."""
        self.ready.append((generation, job))

    def put_back(self, batch: Batch) -> None:
        """The jobs of the batch that have not begun wait for a loader again, before all others."""
        self.ready[:0] = [(batch.generation, job) for job in batch.unstarted_jobs()]

    def pop_parked(self, text: str) -> AnyJob | None:
        """Take the parked job for the same text that has not begun and no caller waits for; None: there is none."""
        for number, (_, _, job) in enumerate(self.parked):
            request = job.plan.request
            if request.text == text and not job.begun and not request.is_interactive:
                del self.parked[number]
                return job
        return None

    def pop_ready(self) -> tuple[int, AnyJob]:
        """Take the first job that waits for a loader, with its generation."""
        return self.ready.pop(0)

    def pop_released(self, is_free: Callable[[str, AnyJob], bool]) -> tuple[int, AnyJob] | None:
        """Take the first parked job whose module `is_free` for it, with its generation; None: there is none."""
        for number, (name, generation, job) in enumerate(self.parked):
            if is_free(name, job):
                del self.parked[number]
                return generation, job
        return None


def _is_by(asker: Requester, pid: int) -> bool:
    """Whether `asker` is the loader `pid`, or belongs to the command that the runner `pid` has started; 0: unknown."""
    return pid != 0 and pid in (asker.pid, asker.command)
