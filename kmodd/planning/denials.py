"""For whom policy denies what a request of the kernel would load: `denials`."""

from __future__ import annotations

from kmodd.dataclass import dataclass, replace
from kmodd.kernel.requester import Requester
from kmodd.planning.plan import Skip
from kmodd.planning.policy import Policy, PolicyQuery

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from kmodd.config.policy_d import Mode, Rule
    from kmodd.planning.plan import Plan
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

    def __str__(self) -> str:
        """Return `denied MODULE   FILE:LINE RULE   to users, if they make the kernel request it`."""
        place = f"{self.decision.at} {self.decision.text}"
        not_enforced = "" if self.mode == "enforce" else f", but Policy={self.mode}"
        whom = ", ".join(self.whom)
        return f"denied {self.module}   {place}   to {whom}, if they make the kernel request it{not_enforced}"


def denials(plan: Plan, rules: Sequence[Rule], query: PolicyQuery, mode: Mode) -> tuple[Denial, ...]:
    """Return the modules that rules deny to a kind of process whose request has this plan, whatever the mode.

    query: of origin `request`, without a process. mode: the policy's.
    """
    policy = Policy("enforce", rules)
    found: dict[tuple[str, str], tuple[PolicyDecision, list[str]]] = {}
    steps = [
        step
        for goal in plan.goals
        for step in sorted(goal.entries, key=lambda entry: entry.module != goal.module)
        if step.required and not isinstance(step, Skip)
    ]
    for kind, requester in ASKERS.items():
        asked = replace(query, requester=requester)
        for step in steps:
            decision = policy.judge(asked, step.module)
            if decision.refused:
                found.setdefault((step.module, str(decision.at)), (decision, []))[1].append(kind)
                break
    return tuple(Denial(module, decision, tuple(kinds), mode) for (module, _), (decision, kinds) in found.items())
