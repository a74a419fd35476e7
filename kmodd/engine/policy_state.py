"""The policy of now: rules, mode, phase, seal and flags. A `PolicyState`.

A mistake in the rules keeps the last valid ones, also those of an earlier daemon of this boot. Where the policy is
enforced, the kernel's helper refuses what the daemon does not answer (MarkPolicy): otherwise flooding or crashing the
daemon would circumvent it.
"""

from __future__ import annotations

from kmodd.config.policy_d import LOCAL, ONCE, TEMPORARY, Mode, Phase
from kmodd.dataclass import replace
from kmodd.engine.events import PolicyMarks
from kmodd.engine.machine import Machine
from kmodd.engine.reporter import Reporter
from kmodd.errors import Problem
from kmodd.planning import policy
from kmodd.planning.outcome import Outcome
from kmodd.planning.plan import Step
from kmodd.planning.policy import Policy, PolicyDecision, asking_of
from kmodd.planning.record import BAD_INPUT, ERR, NOTICE, SEAL, Record
from kmodd.planning.request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class PolicyState:
    """Judges the modules of requests."""

    def __init__(self, machine: Machine, reporter: Reporter, marks: PolicyMarks) -> None:
        self._machine = machine
        self._reporter = reporter
        self._policy = Policy("off")
        self._valid = marks.rules
        """The last rules without a mistake; None: there are none."""
        self._problems: tuple[Problem, ...] = ()
        self._has_flags = False
        self._has_limits = False
        self.booting = not marks.booted
        """Not all devices of the boot are answered yet."""
        self.was_closed = marks.closed
        """An earlier daemon enforced the policy."""
        self.sealed = marks.sealed

    @property
    def mode(self) -> Mode:
        """Whether rules are enforced, only observed, or off."""
        return self._policy.mode

    @property
    def phase(self) -> Phase:
        """The value of `phase=` in rules."""
        return "sealed" if self.sealed else "boot" if self.booting else "running"

    @property
    def rules(self) -> int:
        """Number of rules in force."""
        return len(self._policy.rules)

    @property
    def is_on(self) -> bool:
        """Whether anything is judged."""
        return self.mode != "off" or self.sealed or self._policy.has_local

    @property
    def is_enforced(self) -> bool:
        """Whether requests can be refused for whom they are made by, or that no rule names."""
        return self.sealed or self._policy.needs_requester

    @property
    def broken(self) -> str:
        """The first mistake in policy.d and what applies instead; empty: there is none, or nothing is judged."""
        problem = self._first_problem()
        if problem is None:
            return ""
        applied = "the earlier rules apply" if self._valid is not None else "only requests known as root's are allowed"
        if self._valid is None and self.mode == "off" and not self.sealed:
            applied = "the line is ignored"
        return f"{problem}; until this is corrected, {applied}, and all valid deny rules"

    def _first_problem(self) -> Problem | None:
        """Return the first mistake in a rule that would be judged, None if there is none."""
        all_count = self.mode != "off" or self.sealed
        return next((each for each in self._problems if all_count or each.at.file in (LOCAL, TEMPORARY)), None)

    def reload(self, mode: Mode) -> tuple[tuple[Problem, ...], bool]:
        """Read the rules again; if they have mistakes, `rules_in_force` says which apply.

        Returns the lines that could not be used, and whether anything is different now.
        """
        parsed = self._machine.rules()
        rules = policy.rules_in_force(parsed, self._valid)
        changed = rules != self._policy.rules or mode != self.mode
        self._policy = Policy(mode, rules)
        keys = {condition.key for rule in rules for condition in rule.conditions}
        self._has_flags, self._has_limits = "flag" in keys, "until" in keys
        is_new = parsed.problems != self._problems
        self._problems = parsed.problems
        if not parsed.problems:
            self._valid = rules
        elif (is_new or changed) and self._first_problem():
            kept = "keeping all earlier rules" if self._valid is not None else "denying requests not known as root's"
            if self._valid is None and self.mode == "off" and not self.sealed:
                kept = "ignoring these lines"
            message = f"The rules in policy.d are invalid; {kept}, and applying its valid deny rules"
            self._reporter.log(Record(BAD_INPUT, ERR, message))
        self._mark()
        return parsed.problems, changed

    def seal(self, sealed: bool) -> None:
        """Refuse all that no rule allows, or stop to. It is recorded."""
        self.sealed = sealed
        words = "Sealed: refusing all modules that no rule allows" if sealed else "The seal was removed"
        self._reporter.log(Record(SEAL, NOTICE, words))
        self._mark()

    def finish_boot(self) -> None:
        """All devices of the boot are answered."""
        self.booting = False
        self._mark()

    def _mark(self, spent: str = "") -> None:
        self._reporter.mark_policy(PolicyMarks(self.sealed, self.is_enforced, not self.booting, self._valid), spent)

    def spend(self, outcome: Outcome) -> None:
        """A module was loaded: if a rule allowed a single load of it, that rule ends."""
        judge = self.judge_of(outcome.request) if self._has_flags and outcome.result == "loaded" else None
        rule = judge(outcome.module).rule if judge else None
        for condition in rule.conditions if rule and rule.is_local else ():
            if condition.key == "flag" and condition.wanted and condition.wanted[0].startswith(ONCE):
                self._mark(condition.wanted[0])

    def judge_of(self, request: Request) -> Callable[[str], PolicyDecision] | None:
        """The judge of this request's modules; None: the policy is off."""
        if not self.is_on:
            return None
        flags = self._machine.flags() if self._has_flags else frozenset[str]()
        asking = asking_of(request, self.phase, flags, self._machine.uptime() if self._has_limits else 0.0)
        if not request.candidates:
            return lambda module: self._policy.judge(asking, module)
        each = [replace(asking, requester=who) for who in request.candidates]
        return lambda module: policy.strictest([self._policy.judge(one, module) for one in each])

    def refusal(self, request: Request, step: Step) -> Outcome | None:
        """The outcome of a step that policy refuses now; None: it allows the step."""
        judge = self.judge_of(request)
        decision = judge(step.module) if judge else policy.ALLOWED
        if not decision.refused:
            return None
        return Outcome(request, step.module, "denied", step.because, at=decision.at, rule=decision.text)

    def note(self, outcome: Outcome) -> Outcome:
        """`outcome`, with the rule that would have refused it in mode enforce, or that has it logged."""
        judge = self.judge_of(outcome.request) if outcome.request.removing is None else None
        decision = judge(outcome.module) if judge else policy.ALLOWED
        if decision.verdict == "allow" or decision.refused:  # refused: only since it was begun
            return outcome
        words = "the policy would have refused it" if decision.would_be_refused else "the policy logs it"
        evidence = (("KMODD_VERDICT", "would_deny" if decision.would_be_refused else "log"),)
        said = f"{words}: {decision.text} at {decision.at}"
        detail = f"{outcome.detail}; {said}" if outcome.detail else said
        place = outcome.at or decision.at
        return replace(outcome, detail=detail, rule=decision.text, at=place, evidence=(*outcome.evidence, *evidence))
