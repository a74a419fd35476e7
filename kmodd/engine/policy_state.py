"""The policy of now: rules, mode, phase, seal and flags. A `PolicyState`.

A broken rule file keeps the old rules. Where the policy is enforced, the kernel's helper refuses what the daemon does
not answer (MarkPolicy): otherwise flooding or crashing the daemon would circumvent it.
"""

from __future__ import annotations

from kmodd.config.policy_d import Mode, Parsed, Phase
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
        self._parsed = Parsed()
        self._has_flags = False
        self._is_first = True
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
    def is_on(self) -> bool:
        """Whether anything is judged."""
        return self.mode != "off" or self.sealed

    @property
    def is_enforced(self) -> bool:
        """Whether requests can be refused."""
        return self.mode == "enforce" or self.sealed

    def reload(self, mode: Mode) -> tuple[tuple[Problem, ...], bool]:
        """Read the rules again: all of the new ones or, if they are broken, all of the old ones.

        Returns the lines that could not be used, and whether anything is different now.
        """
        parsed = self._machine.rules()
        problems = parsed.problems
        if parsed.problems and not self._is_first:
            message = "The rules in policy.d are invalid; keeping all earlier rules"
            self._reporter.log(Record(BAD_INPUT, ERR, message))
            parsed = self._parsed
        changed = parsed.rules != self._parsed.rules or mode != self.mode
        self._parsed, self._is_first = parsed, False
        self._policy = Policy(mode, parsed.rules)
        self._has_flags = any(condition.key == "flag" for rule in parsed.rules for condition in rule.conditions)
        self._mark()
        return problems, changed

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

    def _mark(self) -> None:
        self._reporter.mark_policy(PolicyMarks(self.sealed, self.is_enforced, not self.booting))

    def judge_of(self, request: Request) -> Callable[[str], PolicyDecision] | None:
        """The judge of this request's modules; None: the policy is off."""
        if not self.is_on:
            return None
        flags = self._machine.flags() if self._has_flags else frozenset[str]()
        asking = asking_of(request, self.phase, flags)
        return lambda module: self._policy.judge(asking, module)

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
