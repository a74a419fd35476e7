"""State of a plan in execution: the next step, and the steps not attempted after a failure. No I/O.

The owner of a `Job` executes each step and passes its outcome back.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass, field
from kmodd.planning.outcome import KEPT_OUT, Outcome, Result, not_attempted, of_skip
from kmodd.planning.plan import Insmod, Install, Plan, Skip, Step
from kmodd.planning.progress import Progress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_WHY: Mapping[Result, str] = {
    "crashed": "crashed in the kernel", "stuck": "has not finished its init",
}  # fmt: skip
"""Why a module is unavailable to those that need it; for other results it failed."""


@dataclass(slots=True)
class Job:
    """A plan in execution."""

    plan: Plan
    outcomes: list[Outcome] = field(default_factory=list)
    """Outcomes so far, in the order of the plan."""
    _goal: int = 0
    """Index of the current goal."""
    _entry: int = 0
    """Index of the current entry in that goal."""
    progress: Progress = field(default_factory=Progress)
    begun: bool = False
    """Whether a loader was given a step."""
    abandoned: bool = False
    """Whether steps were skipped for another reason than the failure of an earlier one."""
    _reported: int = 0
    """Number of outcomes that `pop_outcomes` has returned."""
    kept_out: frozenset[str] = frozenset()
    """Goals that an administrator excluded: neither they nor their dependencies are tried."""
    index_age: int = 0
    """SystemState.index_age that it was planned for."""
    results_age: int = 0
    """ResultCache.age that it was planned for."""
    _failed: str = ""
    """Which required module of the current goal failed and how; the rest of the goal is not attempted."""

    def next_step(self, known: Callable[[Step], Outcome | None]) -> Step | None:
        """Return the next step to execute, None at the end of the plan. Add outcomes for entries that need no loader.

        known: returns the outcome of a step if it needs no execution, else None. An earlier step may have loaded the
        module, and the kernel is not asked again (kmod also checks before each entry, libkmod-module.c).
        """
        if not self.plan.goals and not self.outcomes:
            self.outcomes += [of_skip(self.plan.request, skip) for skip in self.plan.skips]
        while self._goal < len(self.plan.goals):
            entries = self.plan.goals[self._goal].entries
            if self._entry == len(entries):
                self._goal += 1
                self._entry = 0
                self._failed = ""
                continue
            entry = entries[self._entry]
            if isinstance(entry, Skip):
                self._add(of_skip(self.plan.request, entry))
                if entry.reason == "missing" and entry.required:
                    self._failed = f"{entry.module} failed"
            elif self.plan.goals[self._goal].module in self.kept_out:
                self._add(not_attempted(self.plan.request, entry, KEPT_OUT))
            elif self._failed:
                self._add(not_attempted(self.plan.request, entry, self._failed))
            elif outcome := known(entry):
                self.finish(outcome)
            else:
                return entry
        return None

    def finish(self, outcome: Outcome) -> None:
        """Record the outcome of the step that `next_step` returned."""
        entry = self.plan.goals[self._goal].entries[self._entry]
        if not outcome.ok and not isinstance(entry, Skip) and entry.required:
            self._failed = f"{outcome.module} {_WHY.get(outcome.result, 'failed')}"
        self._add(outcome)

    def abandon(self, why: str) -> None:
        """Record each remaining step as not attempted, for the reason `why`."""
        self.abandoned = True
        while step := self.next_step(lambda _: None):
            self._add(not_attempted(self.plan.request, step, why))

    def keep_out(self, modules: frozenset[str]) -> None:
        """Do not try these goals: an administrator removed them."""
        self.kept_out = modules

    def run(self, may: Callable[[Insmod], bool], most: int) -> tuple[Insmod, ...]:
        """Return the current step, a file, and the files that directly follow it, each module once.

        Only skips and repeated modules may be in between: a module that two goals need is live by the second.
        may: whether a file can be given to a loader now. most: limit of the number of files.
        """
        files: list[Insmod] = []
        first = self._entry
        for goal in self.plan.goals[self._goal :]:
            for entry in goal.entries[first:]:
                if isinstance(entry, Skip):
                    if entry.required and entry.reason == "missing":
                        return tuple(files)
                    continue
                if any(entry.module == file.module for file in files):
                    continue
                if not isinstance(entry, Insmod) or goal.module in self.kept_out or len(files) == most:
                    return tuple(files)
                if files and not may(entry):
                    return tuple(files)
                files.append(entry)
            first = 0
        return tuple(files)

    def note_ages(self, index_age: int, results_age: int) -> None:
        """Note for which files and results the job was planned."""
        self.index_age, self.results_age = index_age, results_age

    def leans_on(self) -> list[str]:
        """Return the modules of the current goal that its current step needs: loaded, or found live, before it.

        Without those of commands, which need not load what they stand for.
        """
        goal = self.plan.goals[self._goal]
        before = zip(reversed(goal.entries[: self._entry]), reversed(self.outcomes), strict=False)
        return [
            outcome.module
            for entry, outcome in before
            if entry.required and outcome.result in ("loaded", "live") and not isinstance(entry, Install)
        ]

    def begin(self) -> None:
        """Note that a loader has begun with a step, so that the kernel may have changed by it."""
        self.begun = True

    def pop_outcomes(self) -> list[Outcome]:
        """Take the outcomes added since the last call."""
        new = self.outcomes[self._reported :]
        self._reported = len(self.outcomes)
        return new

    def _add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self._entry += 1
