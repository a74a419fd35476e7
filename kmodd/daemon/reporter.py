"""Everything the daemon says, and what it counts: a record for each outcome, a summary for what was there before."""

from __future__ import annotations

import time

from kmodd.dataclass import dataclass, field
from kmodd.errors import Problem
from kmodd.host.journal import Journal
from kmodd.planning.outcome import Outcome
from kmodd.planning.plan import Plan, Reason
from kmodd.planning.record import (
    ALREADY_THERE,
    BAD_INPUT,
    COLDPLUG_DONE,
    DRIFT,
    INFO,
    NOTICE,
    WARNING,
    Record,
    record_of,
)
from kmodd.planning.request import Request
from kmodd.state.rate_limit import RateLimiter
from kmodd.state.result_cache import ResultCache
from kmodd.text import duration

MAX_WARNINGS = 256
"""Messages that are remembered, so that each is said once."""


@dataclass(slots=True)
class Counters:
    """What happened since the start, for `kmodd status`."""

    events: int = 0
    overruns: int = 0
    repeats: int = 0
    """Synthetic requests whose answer was known: nothing was done."""
    results: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Coldplug:
    """The first replay, until all of it is answered."""

    since_ns: int
    devices: int = 0
    loaded: set[str] = field(default_factory=set)
    found_live: set[str] = field(default_factory=set)
    """What an initramfs or PID 1 had loaded: one record for all."""


def _is_no_news(outcome: Outcome) -> bool:
    """A look at what is there that finds all as it was: it was told when it came to be so."""
    refused_before = outcome.result == "not_attempted" and outcome.errno != 0
    return outcome.request.origin == "reconcile" and (refused_before or outcome.result in ("live", "builtin"))


class Reporter:
    """Writes records to a journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._coldplug: _Coldplug | None = None
        self.counters = Counters()
        self._repeats = RateLimiter()
        self._complained: set[str] = set()

    @property
    def records_lost(self) -> int:
        """Journal records that were given up."""
        return self._journal.lost

    @property
    def records_held_back(self) -> int:
        """Records of what users have the kernel ask for again and again, that no later one has counted yet."""
        return self._repeats.held_back

    def tell(self, record: Record) -> None:
        """Say one thing."""
        self._journal.write(record)

    def complain(self, problem: Problem) -> None:
        """Say what a file's line is good for: nothing."""
        fields = (("KMODD_FILE", problem.at.file), ("KMODD_LINE", str(problem.at.line)))
        self.tell(Record(BAD_INPUT, WARNING, str(problem), fields))

    def complain_once(self, message: str) -> None:
        """Say what does not work, but not each time that it does not."""
        if message not in self._complained:
            if len(self._complained) >= MAX_WARNINGS:
                self._complained.clear()
            self._complained.add(message)
            self.tell(Record(BAD_INPUT, WARNING, message))

    def outcomes(self, outcomes: list[Outcome], answers: ResultCache) -> None:
        """Say what came of steps and skips; a no-match once for each alias, as `answers` remembers."""
        for outcome in outcomes:
            results = self.counters.results
            results[outcome.result] = results.get(outcome.result, 0) + 1
            if self._is_summed_up(outcome) or _is_no_news(outcome):
                continue
            if outcome.result == "nomatch" and not answers.first_nomatch(outcome.request.text):
                continue
            repeated = self._repeats.admit(outcome, time.monotonic())
            if repeated is not None:
                self.tell(record_of(outcome, repeated))

    def _is_summed_up(self, outcome: Outcome) -> bool:
        """Whether the end of coldplug says it: a live module that was not our doing, or was told when we loaded it."""
        coldplug = self._coldplug
        if coldplug is None or outcome.request.origin != "coldplug":
            return False
        if outcome.result == "loaded":
            coldplug.loaded.add(outcome.module)
        elif outcome.result == "live" and outcome.module not in coldplug.loaded:
            coldplug.found_live.add(outcome.module)
        return outcome.result == "live"

    @property
    def in_coldplug(self) -> bool:
        """What was there before us is not all answered yet."""
        return self._coldplug is not None

    def begin_coldplug(self) -> None:
        """The replay of what was there before us begins."""
        self._coldplug = _Coldplug(time.monotonic_ns())

    def coldplug_device(self) -> None:
        """One device more of that replay."""
        if self._coldplug is not None:
            self._coldplug.devices += 1

    def end_coldplug(self) -> None:
        """Say once that everything that was there before us is answered."""
        coldplug, self._coldplug = self._coldplug, None
        if coldplug is None:
            return
        if coldplug.found_live:
            names = " ".join(sorted(coldplug.found_live))
            message = f"{len(coldplug.found_live)} modules were loaded before kmodd started: {names}"
            self.tell(Record(ALREADY_THERE, INFO, message))
        usec = (time.monotonic_ns() - coldplug.since_ns) // 1000
        message = (
            f"Coldplug is done: {coldplug.devices} devices, {len(coldplug.loaded)} modules loaded, {duration(usec)}"
        )
        self.tell(Record(COLDPLUG_DONE, INFO, message, (("KMODD_DURATION_USEC", str(usec)),)))

    def drift(self, plan: Plan) -> None:
        """A device was found without a driver although a module matches; it is being loaded."""
        request = plan.request
        names = " ".join(goal.module for goal in plan.goals)
        device = request.devices[0] if request.devices else request.text
        message = f"Drift: {device} has no driver although {request.text} matches {names}; it is loaded now"
        fields = (("KMODD_ALIAS", request.text), *(("KMODD_DEVPATH", device) for device in request.devices))
        self.tell(Record(DRIFT, NOTICE, message, fields))

    def stuck_by_others(self, module: str, seconds: float) -> None:
        """What somebody else has the kernel start takes too long; nobody waits for it any more."""
        outcome = Outcome(
            Request(module, "coldplug"), module, "stuck", Reason("asked", module),
            duration_usec=int(seconds * 1e6), detail="not started by this daemon; it is left alone",
        )  # fmt: skip
        self.outcomes([outcome], ResultCache())

    def ended_by_others(self, module: str, is_live: bool, seconds: float) -> None:
        """What somebody else had the kernel start has come out."""
        detail = (
            "begun before kmodd, or by somebody else" if is_live else "it was begun before kmodd or by somebody else"
        )
        outcome = Outcome(
            Request(module, "coldplug"), module, "loaded" if is_live else "failed", Reason("asked", module),
            duration_usec=int(seconds * 1e6), detail=detail,
        )  # fmt: skip
        self.outcomes([outcome], ResultCache())
