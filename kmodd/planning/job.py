"""A plan that is being carried out: which step is next, and what is not attempted after a failure.

Pure bookkeeping. Whoever holds the job hands the steps out and brings back what came of each.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass, field
from kmodd.planning.outcome import KEPT_OUT, Outcome, Result, not_attempted, of_skip
from kmodd.planning.plan import Insmod, Plan, Skip, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_WHY: Mapping[Result, str] = {"crashed": "crashed in the kernel", "stuck": "hangs in its start"}
"""How a module is out of reach for what needs it; else it failed."""


@dataclass(slots=True)
class Job:
    """One plan under way. Its outcomes grow in the order of the plan."""

    plan: Plan
    outcomes: list[Outcome] = field(default_factory=list)
    _goal: int = 0
    _entry: int = 0
    begun: bool = False
    """Something of it was given to a loader."""
    abandoned: bool = False
    """Something of it was not tried, and not because of what came of the rest."""
    _told: int = 0
    kept_out: frozenset[str] = frozenset()
    """Goals that somebody's will stands against: nothing of them is tried, what they need neither."""
    _failed: str = ""
    """What became of the required module of the present goal that failed; the rest of the goal is not attempted."""

    def next_step(self, known: Callable[[Step], Outcome | None]) -> Step | None:
        """The step to do now; None: the plan is through. What needs no doing becomes an outcome on the way.

        `known` gives the outcome of a step without trying it: an earlier step may have brought the module along, and
        the kernel is not asked a second time (kmod checks before each entry too, libkmod-module.c).
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
                    self._failed = f"{entry.module} failed before it"
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
        """The step that `next_step` gave has come out like this."""
        entry = self.plan.goals[self._goal].entries[self._entry]
        if not outcome.ok and not isinstance(entry, Skip) and entry.required:
            self._failed = f"{outcome.module} {_WHY.get(outcome.result, 'failed before it')}"
        self._add(outcome)

    def abandon(self, why: str) -> None:
        """Nothing more of this plan can be tried; each step that is left is an outcome that says so."""
        self.abandoned = True
        while step := self.next_step(lambda _: None):
            self._add(not_attempted(self.plan.request, step, why))

    def run(self, may: Callable[[Insmod], bool], most: int) -> tuple[Insmod, ...]:
        """The present step, a file, and those that follow it at once, at most `most`, each module once.

        What stands between them may only be what needs no doing: a module that two goals need is live by the second.
        `may` says whether one can be handed over now.
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

    def untold(self) -> list[Outcome]:
        """The outcomes that came since this was asked last."""
        new = self.outcomes[self._told :]
        self._told = len(self.outcomes)
        return new

    def _add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self._entry += 1
