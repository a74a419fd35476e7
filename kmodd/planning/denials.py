"""For whom policy denies what a request of the kernel would load: `denials`."""

from __future__ import annotations

from itertools import chain

from kmodd.dataclass import dataclass, replace
from kmodd.kernel.requester import Requester
from kmodd.planning.plan import Skip
from kmodd.planning.policy import Policy, PolicyQuery

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Final

    from kmodd.config.policy_d import Mode, Rule
    from kmodd.planning.plan import Goal, Plan, Step
    from kmodd.planning.policy import PolicyDecision

ASKERS: Final = {
    "root": Requester(0, "", "", 0, None, "", "session-1.scope", container=False),
    "services": Requester(0, "", "", 101, None, "", "a.service", container=False),
    "users": Requester(0, "", "", 1000, None, "", "session-1.scope", container=False),
    "containers": Requester(0, "", "", 0, None, "", "", container=True),
}
"""One process of each kind that makes the kernel ask; `kmodd policy test` has options for any other one."""


@dataclass(frozen=True, slots=True)
class Denial:
    """A module that the rules of policy.d deny to some kinds of processes."""

    module: str
    decision: PolicyDecision
    whom: tuple[str, ...]
    """Names of ASKERS."""
    mode: Mode
    """Mode of the policy: whether the denial is enforced."""
    because: str = ""
    """Why the module is in the plan: `dependency of x`; empty: it is the one that is requested."""

    def __str__(self) -> str:
        """Return `denied MODULE   FILE:LINE RULE   to users, if they make the kernel request it; dependency of X`."""
        place = f"{self.decision.at} {self.decision.text}"
        not_enforced = "" if self.mode == "enforce" else f", but Policy={self.mode}"
        whom = ", ".join(self.whom)
        why = f"; {self.because}" if self.because else ""
        return f"denied {self.module}   {place}   to {whom}, if they make the kernel request it{not_enforced}{why}"


def denials(plan: Plan, rules: Sequence[Rule], query: PolicyQuery, mode: Mode) -> tuple[Denial, ...]:
    """Return the modules that rules deny to a kind of process whose request has this plan, whatever the mode.

    Those of local rules, which are enforced in every mode, come first. Softdeps count. Of
    what one rule denies together with the requested module, that module is named alone.

    query: of origin `request`, without a process. mode: the policy's.
    """
    policies = Policy(mode, rules), Policy("enforce", rules)
    found: dict[tuple[str, str], Denial] = {}
    for kind, requester in ASKERS.items():
        asked = replace(query, requester=requester)
        for step, decision, because in chain.from_iterable(_denied(goal, policies, asked) for goal in plan.goals):
            place = (step.module, str(decision.at))
            held: Mode = "enforce" if decision.is_local else mode
            denial = found.setdefault(place, Denial(step.module, decision, (), held, because))
            found[place] = replace(denial, whom=tuple(dict.fromkeys((*denial.whom, kind))))
    return tuple(found.values())


def _denied(goal: Goal, policies: Sequence[Policy], asked: PolicyQuery) -> Iterator[tuple[Step, PolicyDecision, str]]:
    """Yield the steps of a goal that are denied, its own module first, with decision and `Denial.because`."""
    own: PolicyDecision | None = None
    for step in sorted(goal.entries, key=lambda entry: entry.module != goal.module):
        if isinstance(step, Skip):
            continue
        decisions = [policy.judge(asked, step.module) for policy in policies]
        decision = next((each for each in decisions if each.refused), None)
        if decision is None:
            continue
        if step.module == goal.module:
            own = decision
            yield step, decision, ""
        elif own is None or own.rule != decision.rule:
            yield step, decision, str(step.because)
