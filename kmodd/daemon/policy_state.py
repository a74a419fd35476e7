"""What policy says now: rules, mode, phase and flags. A `PolicyState`.

A broken rule file keeps the old rules. Where the policy is enforced, a mark below /run has the kernel's helper refuse
whatever this daemon cannot answer: else flooding or crashing it would be a way round.
"""

from __future__ import annotations

import os

from kmodd.config.policy_d import Mode, Parsed, Phase
from kmodd.daemon.reporter import Reporter
from kmodd.dataclass import replace
from kmodd.errors import Problem
from kmodd.host.config_files import read_flags, read_rules
from kmodd.planning import policy
from kmodd.planning.outcome import Outcome
from kmodd.planning.plan import Step
from kmodd.planning.policy import Policy, PolicyDecision, asking_of
from kmodd.planning.record import BAD_INPUT, ERR, NOTICE, SEAL, Record
from kmodd.planning.request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CLOSED = "/run/kmodd/closed"
"""The kernel's helper fails closed while this is there."""
SEALED = "/run/kmodd/sealed"
"""A seal outlives the daemon, not the boot."""
BOOTED = "/run/kmodd/booted"
"""So does the end of the boot."""


class PolicyState:
    """Judges, for one machine."""

    def __init__(self, root: str, report: Reporter, run: bool = False) -> None:
        """`run`: marks are kept below /run, and read there."""
        self._root = root
        self._report = report
        self._run = run
        self._policy = Policy("off")
        self._parsed = Parsed()
        self._has_flags = False
        self._is_first = True
        self.booting = not (run and os.path.exists(BOOTED))
        """Not all devices of the boot are answered yet."""
        self.was_closed = run and os.path.exists(CLOSED)
        """A daemon before this one enforced the policy."""
        self.sealed = run and os.path.exists(SEALED)

    @property
    def mode(self) -> Mode:
        """What becomes of the rules."""
        return self._policy.mode

    @property
    def phase(self) -> Phase:
        """For rules that ask for it."""
        return "sealed" if self.sealed else "boot" if self.booting else "running"

    def reload(self, mode: Mode) -> tuple[tuple[Problem, ...], bool]:
        """Read the rules again: all of the new, or, if they are broken, all of the old.

        The answer: what is wrong with them, and whether anything is different now.
        """
        parsed = read_rules(self._root)
        if parsed.problems and not self._is_first:
            message = "The rules of policy.d are broken: all earlier rules stay in force"
            self._report.tell(Record(BAD_INPUT, ERR, message))
            problems, parsed = parsed.problems, self._parsed
        else:
            problems = parsed.problems
        changed = parsed.rules != self._parsed.rules or mode != self.mode
        self._parsed, self._is_first = parsed, False
        self._policy = policy.Policy(mode, parsed.rules)
        self._has_flags = any(condition.key == "flag" for rule in parsed.rules for condition in rule.conditions)
        self._mark()
        return problems, changed

    def seal(self, sealed: bool) -> None:
        """From now on only what a rule allows; or no more so. It is recorded."""
        self.sealed = sealed
        words = "Sealed: what no rule allows is refused from now on" if sealed else "The seal is taken back"
        self._report.tell(Record(SEAL, NOTICE, words))
        self._mark()

    def boot_is_over(self) -> None:
        """All that was there at the start is answered."""
        self.booting = False
        self._mark()

    def _mark(self) -> None:
        if not self._run:
            return
        closed = self.sealed or self.mode == "enforce"
        for path, is_so in ((SEALED, self.sealed), (CLOSED, closed), (BOOTED, not self.booting)):
            try:
                if is_so:
                    with open(path, "w"):
                        pass
                elif os.path.exists(path):
                    os.unlink(path)
            except OSError as error:
                what = "is not set" if is_so else "cannot be taken away"
                self._report.complain_once(f"{path}: {error.strerror}: the mark of the policy {what}")

    def judge_of(self, request: Request) -> Callable[[str], PolicyDecision] | None:
        """What judges the modules of this request; None: nothing is judged."""
        if self.mode == "off" and not self.sealed:
            return None
        flags = read_flags(self._root) if self._has_flags else frozenset[str]()
        asking = asking_of(request, self.phase, flags)
        return lambda module: self._policy.judge(asking, module)

    def refusal(self, request: Request, step: Step) -> Outcome | None:
        """What policy has against a step now; None: nothing."""
        judge = self.judge_of(request)
        judgement = judge(step.module) if judge else policy.ALLOWED
        if not judgement.refused:
            return None
        return Outcome(request, step.module, "denied", step.because, at=judgement.at, rule=judgement.text)

    def note(self, outcome: Outcome) -> Outcome:
        """The outcome of a load, with what policy has to say to it though it let it pass."""
        judge = self.judge_of(outcome.request) if outcome.request.removing is None else None
        judgement = judge(outcome.module) if judge else policy.ALLOWED
        if judgement.verdict == "allow" or judgement.refused:  # refused: only since it was begun
            return outcome
        words = "policy would have refused it" if judgement.would_be_refused else "policy has it noted"
        evidence = (("KMODD_VERDICT", "would_deny" if judgement.would_be_refused else "log"),)
        said = f"{words}: {judgement.text} at {judgement.at}"
        detail = f"{outcome.detail}; {said}" if outcome.detail else said
        place = outcome.at or judgement.at
        return replace(outcome, detail=detail, rule=judgement.text, at=place, evidence=(*outcome.evidence, *evidence))
