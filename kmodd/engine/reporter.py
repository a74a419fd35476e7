"""The journal records of the engine: one for each decision, a summary for coldplug; and counters. A `Reporter`."""

from __future__ import annotations

import errno

from kmodd.dataclass import dataclass, field, replace
from kmodd.engine.events import AnyJob, Command, Log, MarkPolicy, PolicyMarks
from kmodd.engine.machine import Machine
from kmodd.errors import Problem, Where
from kmodd.planning.decision import Decision, Times, decision_record, detail_record, has_own_record, is_requested
from kmodd.planning.findings import Finding
from kmodd.planning.outcome import Outcome
from kmodd.planning.plan import Plan, Reason
from kmodd.planning.record import (
    ALREADY_THERE,
    BAD_INPUT,
    COLDPLUG_DONE,
    DEBUG,
    DRIFT,
    INFO,
    NO_SUBJECT,
    NOTICE,
    WARNING,
    Record,
    Subject,
    counted,
    record_of,
)
from kmodd.planning.request import Request
from kmodd.state.rate_limit import RateLimiter
from kmodd.state.result_cache import ResultCache
from kmodd.text import count_of, duration

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
    usec: dict[str, int] = field(default_factory=dict)
    """Duration of the init of each module that was loaded, in µs."""
    found_live: set[str] = field(default_factory=set)
    """Modules that the initramfs or PID 1 had loaded: one record for all."""
    no_hardware: set[str] = field(default_factory=set)
    """Modules whose init found no hardware: their aliases are those of a class, such as a processor's."""

    def count(self, outcome: Outcome, loaded: set[str]) -> None:
        """One more outcome. loaded: modules that this daemon has loaded."""
        if outcome.result == "loaded":
            self.usec[outcome.module] = outcome.duration_usec
        elif outcome.result == "live" and outcome.module not in loaded:
            self.found_live.add(outcome.module)
        elif _found_no_hardware(outcome):
            self.no_hardware.add(outcome.module)

    def summary(self, usec: int) -> str:
        """The sentence at its end. usec: its duration in µs."""
        counts = f"{count_of(self.devices, 'device')}, {count_of(len(self.usec), 'module')}"
        sentence = f"Coldplug done in {duration(usec)}: {counts}"
        if self.usec:
            slowest = max(self.usec, key=lambda name: self.usec[name])
            sentence += f", slowest {slowest} {duration(self.usec[slowest])}"
        return sentence + (f"; {len(self.no_hardware)} found no hardware" if self.no_hardware else "")


def _found_no_hardware(outcome: Outcome) -> bool:
    return outcome.result == "failed" and outcome.by_kernel and outcome.errno == errno.ENODEV


def _is_no_news(outcome: Outcome) -> bool:
    """A replay found the module as it was: that was recorded when it came to be so."""
    refused_before = outcome.result == "not_attempted" and outcome.errno != 0
    return outcome.request.origin == "reconcile" and (refused_before or outcome.result in ("live", "builtin"))


def _fields_of(at: Where) -> tuple[tuple[str, str], ...]:
    return ("KMODD_FILE", at.file), ("KMODD_LINE", str(at.line))


class Reporter:
    """Emits records as commands."""

    def __init__(self, emit: Callable[[Command], None], machine: Machine) -> None:
        self._emit = emit
        self._machine = machine
        self.level = INFO
        """The least important level that is written, as in syslog(3)."""
        self._decisions = 0
        self._loaded: set[str] = set()
        """Modules that this daemon has loaded."""
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

    def set_level(self, level: int) -> None:
        """Write records of this level, as in syslog(3), and more important ones."""
        self.level = level

    def log(self, record: Record, about: Decision | Outcome | None = None, subject: Subject = NO_SUBJECT) -> None:
        """Write one record, if its level is written. about, subject: what it was made from; None: no request."""
        if record.priority <= self.level:
            self._emit(Log(record, about, subject))

    def log_findings(self, findings: Sequence[Finding]) -> None:
        """Write the mistakes in the configuration that were not written before."""
        said = {(finding.at, finding.text) for finding in findings if (finding.at, finding.boot_name) in self._boot}
        new = [finding for finding in findings if (finding.at, finding.text) not in self._said | said]
        for finding in new[:MAX_FINDINGS]:
            priority = WARNING if finding.severity == "error" else NOTICE
            self.log(Record(BAD_INPUT, priority, finding.message, _fields_of(finding.at)))
        if len(new) > MAX_FINDINGS:
            count = count_of(len(new) - MAX_FINDINGS, "more mistake")
            more = f"{count} in the configuration: see `kmodd lint`"
            self.log(Record(BAD_INPUT, WARNING, more))
        # Mistakes that are gone are forgotten: they are news if they come back.
        self._said = {(finding.at, finding.text) for finding in findings}

    def log_problem(self, problem: Problem) -> None:
        """Write that a line of a file could not be used."""
        self._said.add((problem.at, problem.expected))
        self.log(Record(BAD_INPUT, WARNING, str(problem), _fields_of(problem.at)))

    def log_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Write outcomes that belong to no job, or came after its end."""
        for outcome in outcomes:
            self._count(outcome)
            if not self._is_covered(outcome):
                self._write(outcome, record_of(outcome), outcome)

    def log_job(self, job: AnyJob, new: Sequence[Outcome], results: ResultCache) -> None:
        """Write what went wrong with `new` outcomes of a job, and, once it is complete, the decision.

        results: tells whether a request without a match was recorded before.
        """
        for outcome in new:
            self._count(outcome)
        decision = self._decide(job) if job.progress.pop_end() and job.outcomes else None
        deciding = decision.deciding if decision else None
        wanted = [each for each in new if each is not deciding and has_own_record(each) and not self._is_covered(each)]
        details = [] if self.level < DEBUG else [each for each in new if not is_requested(each)]
        if decision and self.level >= DEBUG:
            details += [each for each in job.outcomes if is_requested(each)]
        details = [each for each in details if each is not deciding and not has_own_record(each)]
        if deciding and has_own_record(deciding) and deciding not in new:
            deciding = None
        if deciding and self._was_told(deciding, results):
            deciding = None
        details = [each for each in details if not self._is_covered(each)]
        if not (wanted or details or deciding):
            return
        subject = self._subject(job)
        for outcome in wanted:
            self._write(outcome, record_of(outcome, 0, subject), outcome, subject)
        for outcome in details:
            self.log(detail_record(outcome, subject), outcome, subject)
        if decision and deciding:
            self._write(deciding, decision_record(decision, subject), decision, subject)

    def _was_told(self, outcome: Outcome, results: ResultCache) -> bool:
        """Whether another record says what a decision would, or none is to be written."""
        if outcome.result == "nomatch":
            return not results.first_nomatch(outcome.request.text)
        is_there = outcome.result in ("live", "builtin") and outcome.request.origin != "request"
        return self._is_covered(outcome) or (is_there and self.level < DEBUG)

    def _count(self, outcome: Outcome) -> None:
        count = self.counters.results
        count[outcome.result] = count.get(outcome.result, 0) + 1
        if outcome.result == "loaded":
            self._loaded.add(outcome.module)
        if self._coldplug and outcome.request.origin == "coldplug":
            self._coldplug.count(outcome, self._loaded)

    def _decide(self, job: AnyJob) -> Decision:
        """The decision of a complete job."""
        plan, now = job.plan, self._now
        goals = [goal.module for goal in plan.goals] if isinstance(plan, Plan) else [x.module for x in plan.targets]
        begin, started = plan.request.since, job.progress.started or now
        wait = max(0.0, started - begin) if begin else 0.0
        # The loader's clock counts, too: replies that are read late, together, make the time between them short.
        usec = max(round((now - started) * 1e6), sum(outcome.duration_usec for outcome in job.outcomes))
        times = Times(round(begin * 1e6), round(wait * 1e6), usec)
        return Decision(plan.request, tuple(goals), tuple(job.outcomes), times)

    def _subject(self, job: AnyJob) -> Subject:
        """What the records of a job say of its request."""
        request = job.plan.request
        if not job.progress.number:
            self._decisions += 1
            job.progress.set_number(self._decisions)
        is_one = request.device_count == 1 and request.devices and request.subsystem != "cpu"
        return Subject(job.progress.number, self._machine.device_name(request.devices[0]) if is_one else "")

    def _write(
        self, outcome: Outcome, record: Record, about: Decision | Outcome, subject: Subject = NO_SUBJECT
    ) -> None:
        """Write the record of an outcome, unless it is one of many like it. about, subject: what it was made from."""
        priority = record.priority
        if outcome.result == "nomatch" and self._ends_without_driver(outcome.request):
            priority = NOTICE
        elif _found_no_hardware(outcome) and outcome.request.origin == "coldplug":
            # Counted in the summary; but dependencies that were loaded for it stay, and no other record has them.
            priority = INFO if isinstance(about, Decision) and about.changed else DEBUG
        elif self._was_blocked(outcome):
            priority = INFO
        if priority > self.level:
            return
        repeated = self._rate_limiter.admit(outcome, self._now)
        if repeated is not None:
            if outcome.request.origin == "boot" and outcome.request.at:
                self._boot.add((outcome.request.at, outcome.request.text))
            self.log(counted(replace(record, priority=priority), repeated), about, subject)

    def _ends_without_driver(self, request: Request) -> bool:
        """Whether a device that was just plugged in has no driver; one that is built in may have taken it."""
        is_new = request.origin == "uevent" and not request.synthetic
        return is_new and not all(map(self._machine.has_driver, request.devices))

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

    def _is_covered(self, outcome: Outcome) -> bool:
        """Whether the record at the end of coldplug says it, or an earlier record did."""
        in_coldplug = self._coldplug is not None and outcome.request.origin == "coldplug"
        return _is_no_news(outcome) or (in_coldplug and outcome.result == "live")

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
            names = sorted(coldplug.found_live)
            message = f"{count_of(len(names), 'module')} loaded before kmodd started: {' '.join(names)}"
            self.log(Record(ALREADY_THERE, INFO, message))
        usec = int((self._now - coldplug.since) * 1e6)
        message = coldplug.summary(usec)
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
        self.log_outcomes([outcome])

    def log_foreign_end(self, module: str, is_live: bool, seconds: float) -> None:
        """Write how a start by another process, or by an earlier daemon, has ended."""
        outcome = Outcome(
            Request(module, "coldplug"), module, "loaded" if is_live else "failed", Reason("asked", module),
            duration_usec=int(seconds * 1e6), detail="started before kmodd, or by another process",
        )  # fmt: skip
        self.log_outcomes([outcome])

    def mark_policy(self, marks: PolicyMarks, spent: str = "") -> None:
        """Keep below /run what of the policy outlives the daemon, without the flag of a rule that is `spent`."""
        self._emit(MarkPolicy(marks, spent))
