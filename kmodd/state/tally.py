"""What the daemon counts of its results, for `kmodd status` and `kmodd metrics`: `Tally`."""

from __future__ import annotations

from kmodd.dataclass import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from kmodd.planning.outcome import Outcome

BOUNDS_USEC = (1_000, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000, 5_000_000, 10_000_000, 60_000_000)
"""Upper bounds of the buckets of init times, µs; one more bucket has the rest."""

MAX_RULES = 64
"""Rules whose refusals are counted each; those of others are counted together, under OTHER."""
OTHER = "other"

FAILURES = frozenset(("failed", "crashed", "stuck", "missing", "not_removed"))
REFUSALS = frozenset(("denied", "blocked"))


@dataclass(frozen=True, slots=True)
class Incident:
    """A failure or refusal, as far as every user may know of it."""

    outcome: Outcome
    at: float
    """When it came to be known (monotonic, seconds)."""


@dataclass(slots=True)
class Tally:
    """Counts since the start of the daemon."""

    results: dict[tuple[str, str], int] = field(default_factory=dict)
    """(origin of the request, result) → number of outcomes."""
    inits: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_USEC) + 1))
    """Number of loads by BOUNDS_USEC, the last one without a bound."""
    init_usec: int = 0
    """Time of all loads together, µs."""
    refusals: dict[str, int] = field(default_factory=dict)
    """Place of the rule or line that refused, or its text without a place → number of refusals."""
    last_failure: Incident | None = None
    last_refusal: Incident | None = None

    def add(self, outcomes: Iterable[Outcome], now: float) -> None:
        """Count the outcomes of a complete job. now: monotonic, seconds."""
        for outcome in outcomes:
            key = (outcome.request.origin, outcome.result)
            self.results[key] = self.results.get(key, 0) + 1
            if outcome.result == "loaded":
                bound = (at for at, usec in enumerate(BOUNDS_USEC) if outcome.duration_usec <= usec)
                self.inits[next(bound, len(BOUNDS_USEC))] += 1
                self.init_usec += outcome.duration_usec
            elif outcome.result in FAILURES:
                self.last_failure = Incident(outcome, now)
            elif outcome.result in REFUSALS:
                self._refused(str(outcome.at) if outcome.at else outcome.rule or OTHER)
                self.last_refusal = Incident(outcome, now)

    def _refused(self, rule: str) -> None:
        if rule not in self.refusals and len(self.refusals) >= MAX_RULES:
            rule = OTHER
        self.refusals[rule] = self.refusals.get(rule, 0) + 1
