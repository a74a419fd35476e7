"""Judge whether a module is kept out, by planning each way on which it could come: `judge`.

A search for `install X /bin/false` in files does not say this: a line may be without effect, in a file that is not
read, or the module may be loaded, built in, or missing.
"""

from __future__ import annotations

import re

from kmodd.dataclass import dataclass
from kmodd.planning.denials import ASKERS
from kmodd.planning.plan import Skip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from kmodd.planning.plan import Plan
    from kmodd.planning.request import Origin

    Planner = Callable[[str, Origin], Plan]

_TRIED = 16
"""Aliases of a kind that are planned at most: those of one module differ in numbers of vendors and products."""


@dataclass(frozen=True, slots=True)
class Hardening:
    """The state of a module that should be kept out."""

    module: str
    state: str
    """absent, builtin, loaded, loadable or blocked."""
    text: str

    @property
    def is_met(self) -> bool:
        """Whether the module is kept out."""
        return self.state in ("absent", "blocked")


def judge(
    module: str,
    state: str,
    *,
    is_known: bool,
    aliases: Sequence[str],
    plan: Planner,
    denied: Callable[[Plan, str], Collection[str]],
) -> Hardening:
    """Return whether a module is kept out.

    state: `live`, `coming`, `going`, `builtin`; empty: the kernel does not have it. is_known: the module tree has it.
    aliases: the patterns that match it. plan: returns the plan for a request. denied: the kinds of ASKERS to which the
    policy denies a request with this plan.
    """  # fmt: skip
    if state == "builtin":
        return Hardening(module, "builtin", "part of the kernel image")
    if not state and not is_known:
        return Hardening(module, "absent", "not in the module tree")
    ways = "; ".join(_ways(module, aliases, plan, denied))
    if state:
        return Hardening(module, "loaded", f"loaded now; {f'can be loaded by {ways}' if ways else 'else kept out'}")
    if ways:
        return Hardening(module, "loadable", f"can be loaded by {ways}")
    own = (skip for goal in plan(module, "operator").goals for skip in goal.entries if isinstance(skip, Skip))
    why = next((skip.why() for skip in own if skip.module == module), "nothing loads it")
    return Hardening(module, "blocked", why)


def _ways(
    module: str, aliases: Sequence[str], plan: Planner, denied: Callable[[Plan, str], Collection[str]]
) -> Iterator[str]:
    """Yield by whom a module can be loaded, and by what name: `root (modprobe cramfs)`."""
    if _comes(plan(module, "operator"), module):
        yield f"root (modprobe {module})"
    by_devices = [alias for alias in aliases if ":" in alias][:_TRIED]
    for alias in by_devices:
        if _comes(plan(example_of(alias), "coldplug"), module):
            yield f"devices ({alias}{_more(by_devices)})"
            break
    by_processes = [alias for alias in aliases if ":" not in alias][:_TRIED]
    for alias in by_processes:
        asked = plan(example_of(alias), "request")
        whom = [kind for kind in ASKERS if kind not in denied(asked, example_of(alias))]
        if whom and _comes(asked, module):
            yield f"processes of {', '.join(whom)} ({alias}{_more(by_processes)})"
            break


def _more(aliases: Sequence[str]) -> str:
    return " and others" if len(aliases) > 1 else ""


def _comes(plan: Plan, module: str) -> bool:
    """Return whether a plan brings a module; one that is blacklisted for this kind of request does not come."""
    return any(
        goal.comes and not any(isinstance(x, Skip) and x.reason == "blacklisted" for x in goal.entries)
        for goal in plan.goals
        if goal.module == module
    )


def example_of(pattern: str) -> str:
    """Return a name that a pattern of fnmatch(3) matches: nothing for `*`, `0` for `?`, the first of a bracket."""
    return re.sub(r"\[(.)[^]]*\]", r"\1", pattern).replace("*", "").replace("?", "0")
