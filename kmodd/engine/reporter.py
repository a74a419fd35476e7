"""The journal records of the engine, and what it counts: one for each outcome, a summary for coldplug. A `Reporter`."""

from __future__ import annotations

from kmodd.dataclass import dataclass, field, replace
from kmodd.engine.events import Command, Log, MarkPolicy, PolicyMarks
from kmodd.errors import Problem, Where
from kmodd.planning.findings import Finding
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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


MAX_FINDINGS = 64
"""Number of mistakes in the configuration that are written after one reload."""

MAX_BLOCKED = 1024
"""Number of blocked modules that are remembered, so that each is one notice."""


@dataclass(slots=True)
class Counters:
    """What happened since the start, for `kmodd status`."""

    events: int = 0
    overruns: int = 0
    repeats: int = 0
    """Synthetic requests with a known result: nothing was done."""
    results: dict[str, int] = field(default_factory=dict)

    def add_event(self) -> None:
        """The kernel has sent a uevent."""
        self.events += 1

    def add_overrun(self) -> None:
        """The kernel has dropped uevents."""
        self.overruns += 1

    def add_repeat(self) -> None:
        """A request had a known result."""
        self.repeats += 1


@dataclass(slots=True)
class _Coldplug:
    """The first replay, until all of it is answered."""

    since: float
    devices: int = 0
    loaded: set[str] = field(default_factory=set)
    found_live: set[str] = field(default_factory=set)
    """Modules that the initramfs or PID 1 had loaded: one record for all."""


def _is_no_news(outcome: Outcome) -> bool:
    """A replay found the module as it was: that was recorded when it came to be so."""
    refused_before = outcome.result == "not_attempted" and outcome.errno != 0
    return outcome.request.origin == "reconcile" and (refused_before or outcome.result in ("live", "builtin"))


def _fields_of(at: Where) -> tuple[tuple[str, str], ...]:
    return ("KMODD_FILE", at.file), ("KMODD_LINE", str(at.line))


class Reporter:
    """Emits records as commands."""

    def __init__(self, emit: Callable[[Command], None]) -> None:
        self._emit = emit
        self._coldplug: _Coldplug | None = None
        self.counters = Counters()
        self._rate_limiter = RateLimiter()
        self._said: set[tuple[Where, str]] = set()
        """Place and text of each mistake in the configuration that was written."""
        self._boot: set[tuple[Where, str]] = set()
        """Line and name of each record about the boot list: `log_findings` does not repeat it."""
        self._blocked: set[tuple[str, str]] = set()
        """Module and line of each record of a blocked module."""
        self._now = 0.0

    def set_time(self, now: float) -> None:
        """The time of the current event (monotonic, seconds)."""
        self._now = now

    @property
    def records_held_back(self) -> int:
        """Records of repeated requests of users that no later record has counted yet."""
        return self._rate_limiter.held_back

    def log(self, record: Record) -> None:
        """Write one record."""
        self._emit(Log(record))

    def log_findings(self, findings: Sequence[Finding]) -> None:
        """Write the mistakes in the configuration that were not written before."""
        said = {(finding.at, finding.text) for finding in findings if (finding.at, finding.boot_name) in self._boot}
        new = [finding for finding in findings if (finding.at, finding.text) not in self._said | said]
        for finding in new[:MAX_FINDINGS]:
            priority = WARNING if finding.severity == "error" else NOTICE
            self.log(Record(BAD_INPUT, priority, finding.message, _fields_of(finding.at)))
        if len(new) > MAX_FINDINGS:
            more = f"{len(new) - MAX_FINDINGS} more mistakes in the configuration: see `kmodd lint`"
            self.log(Record(BAD_INPUT, WARNING, more))
        # Mistakes that are gone are forgotten: they are news if they come back.
        self._said = {(finding.at, finding.text) for finding in findings}

    def log_problem(self, problem: Problem) -> None:
        """Write that a line of a file could not be used."""
        self._said.add((problem.at, problem.expected))
        self.log(Record(BAD_INPUT, WARNING, str(problem), _fields_of(problem.at)))

    def log_outcomes(self, outcomes: list[Outcome], results: ResultCache) -> None:
        """Write the outcomes of steps and skips; a request without a match once for each alias, as `results` knows."""
        for outcome in outcomes:
            count = self.counters.results
            count[outcome.result] = count.get(outcome.result, 0) + 1
            if self._is_summed_up(outcome) or _is_no_news(outcome):
                continue
            if outcome.result == "nomatch" and not results.first_nomatch(outcome.request.text):
                continue
            repeated = self._rate_limiter.admit(outcome, self._now)
            if repeated is not None:
                if outcome.request.origin == "boot" and outcome.request.at:
                    self._boot.add((outcome.request.at, outcome.request.text))
                record = record_of(outcome, repeated)
                self.log(replace(record, priority=INFO) if self._was_blocked(outcome) else record)

    def _was_blocked(self, outcome: Outcome) -> bool:
        """Whether the same line blocked the same module before: that was recorded as a notice."""
        if outcome.result != "blocked":
            return False
        place = (outcome.module, str(outcome.at))
        if place in self._blocked:
            return True
        if len(self._blocked) >= MAX_BLOCKED:
            self._blocked.clear()
        self._blocked.add(place)
        return False

    def _is_summed_up(self, outcome: Outcome) -> bool:
        """Whether the record at the end of coldplug covers it: a live module that was recorded when it was loaded."""
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
        """Coldplug is not all answered yet."""
        return self._coldplug is not None

    def begin_coldplug(self, devices: int) -> None:
        """The replay of the devices that were there at the start begins."""
        self._coldplug = _Coldplug(self._now, devices)

    def end_coldplug(self) -> None:
        """All devices that were there at the start are answered: write so, once."""
        coldplug, self._coldplug = self._coldplug, None
        if coldplug is None:
            return
        if coldplug.found_live:
            names = " ".join(sorted(coldplug.found_live))
            message = f"{len(coldplug.found_live)} modules were loaded before kmodd started: {names}"
            self.log(Record(ALREADY_THERE, INFO, message))
        usec = int((self._now - coldplug.since) * 1e6)
        message = (
            f"Coldplug is done: {coldplug.devices} devices, {len(coldplug.loaded)} modules loaded, {duration(usec)}"
        )
        self.log(Record(COLDPLUG_DONE, INFO, message, (("KMODD_DURATION_USEC", str(usec)),)))

    def log_drift(self, plan: Plan) -> None:
        """Write that a device has no driver although a module matches, and is loaded."""
        request = plan.request
        names = " ".join(goal.module for goal in plan.goals)
        device = request.devices[0] if request.devices else request.text
        message = f"Drift: {device} has no driver although {request.text} matches {names}; loading it now"
        fields = (("KMODD_ALIAS", request.text), *(("KMODD_DEVPATH", device) for device in request.devices))
        self.log(Record(DRIFT, NOTICE, message, fields))

    def log_foreign_hang(self, module: str, seconds: float) -> None:
        """Write that a start by another process takes too long and is not waited for."""
        outcome = Outcome(
            Request(module, "coldplug"), module, "stuck", Reason("asked", module),
            duration_usec=int(seconds * 1e6), detail="not started by this daemon; it is left alone",
        )  # fmt: skip
        self.log_outcomes([outcome], ResultCache())

    def log_foreign_end(self, module: str, is_live: bool, seconds: float) -> None:
        """Write how a start by another process, or by an earlier daemon, has ended."""
        outcome = Outcome(
            Request(module, "coldplug"), module, "loaded" if is_live else "failed", Reason("asked", module),
            duration_usec=int(seconds * 1e6), detail="started before kmodd, or by another process",
        )  # fmt: skip
        self.log_outcomes([outcome], ResultCache())

    def mark_policy(self, marks: PolicyMarks) -> None:
        """Keep below /run what of the policy outlives the daemon."""
        self._emit(MarkPolicy(marks))
