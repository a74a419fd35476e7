"""What is under way: which step is with which loader, what others have the kernel load, and which jobs wait for either.

One load of a name is in flight at a time, over all lanes: whoever else wants the module waits for what comes of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from kmodd.host.lanes import Lane
from kmodd.host.stack import StackQuestion
from kmodd.job import Job
from kmodd.plan import RemovalStep, Step
from kmodd.removal import RemovalJob

AnyJob = Job | RemovalJob

MOST_OWN = 50
"""Lanes for requests that somebody waits for; the kernel itself asks for no more at a time (kernel/module/kmod.c)."""

MOST_PARKED = 256
"""Jobs that wait for a module in flight; beyond, requests stay in the backlog."""


@dataclass(slots=True, eq=False)
class Work:
    """One step with a loader."""

    lane: Lane
    job: AnyJob
    step: Step | RemovalStep
    since_ns: int
    """time.monotonic_ns at the start."""
    let_go: bool = False
    """It is stuck, and its job has gone on without it; what comes of it is told when it comes."""
    question: StackQuestion | None = None
    """Where the kernel was asked where it hangs."""
    answer_by: float | None = None
    """time.monotonic; None: it has not been asked."""
    stack: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """What it loads or removes."""
        return self.step.module

    def seconds(self) -> float:
        """How long it has been going on."""
        return (time.monotonic_ns() - self.since_ns) / 1e9


@dataclass(slots=True)
class Foreign:
    """A module that the kernel is starting, and not for us: a daemon before us began it, or an insmod by hand."""

    since: float
    """time.monotonic when it was seen first."""
    adopted: bool
    """It was there when we started: what comes of it is told."""
    stuck: bool = False


@dataclass(slots=True)
class Flights:
    """All of it."""

    works: dict[Lane, Work] = field(default_factory=dict)
    foreign: dict[str, Foreign] = field(default_factory=dict)
    parked: list[tuple[str, AnyJob]] = field(default_factory=list)

    def places(self) -> int:
        """Works that hold a place in the serial lane."""
        return sum(not work.let_go and not work.job.plan.request.waited_for for work in self.works.values())

    def own(self) -> int:
        """Works on lanes of their own."""
        return sum(not work.let_go and work.job.plan.request.waited_for for work in self.works.values())

    def has_operator(self) -> bool:
        """An operator's job is under way: the next one has to see what comes of it."""
        jobs = (*(work.job for work in self.busy()), *(job for _, job in self.parked))
        return any(job.plan.request.origin == "operator" for job in jobs)

    def busy(self) -> list[Work]:
        """Works that somebody waits for still."""
        return [work for work in self.works.values() if not work.let_go]

    def stuck(self) -> list[str]:
        """Names in flight that nobody waits for any more."""
        names = [work.module for work in self.works.values() if work.let_go]
        return sorted({*names, *(name for name, foreign in self.foreign.items() if foreign.stuck)})

    def is_taken(self, name: str) -> bool:
        """Its load is in flight, and worth waiting for."""
        foreign = self.foreign.get(name)
        if foreign is not None and not foreign.stuck:
            return True
        return any(work.module == name and not work.let_go for work in self.works.values())

    def is_stuck(self, name: str) -> bool:
        """Its load is in flight, and has been for too long."""
        return name in self.stuck()

    def park(self, name: str, job: AnyJob) -> None:
        """`job` cannot go on before it is known what comes of `name`."""
        self.parked.append((name, job))

    def released(self, may_go: Callable[[AnyJob], bool]) -> AnyJob | None:
        """A job that waits for nothing any more and for which there is a place; it is the caller's to drive again."""
        for entry in self.parked:
            name, job = entry
            if not self.is_taken(name) and may_go(job):
                self.parked.remove(entry)
                return job
        return None
