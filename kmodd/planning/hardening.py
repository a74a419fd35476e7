"""Judge whether a module is kept out, by planning each way on which it could come: `judge`.

A search for `install X /bin/false` in files does not say this: a line may be without effect, in a file that is not
read, or the module may be loaded, built in, or missing.
"""

from __future__ import annotations

import re

from kmodd.dataclass import dataclass
from kmodd.planning.benchmarks import KNOWN_NAMES
from kmodd.planning.denials import ASKERS
from kmodd.planning.explain import effect_of
from kmodd.planning.plan import Insmod, Install, Skip
from kmodd.planning.refusals import refusal_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kmodd.planning.plan import Plan
    from kmodd.planning.request import Origin

    Planner = Callable[[str, Origin, str], Plan]
    """Returns the plan for a name, of an origin, for a kind of ASKERS."""

_KERNEL_NAMES = re.compile(r"(net_pf|char_major|block_major|fs|binfmt|rtnl_link|crypto|iosched|tcp)_")
"""How names begin that the kernel requests; an index has them with `_`."""
_NUMBERED = ("net_pf_", "char_major_", "block_major_")


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a module, beside the plans."""

    name: str
    state: str
    """`live`, `coming`, `going`, `builtin`; empty: the kernel does not have it."""
    in_tree: bool
    aliases: tuple[str, ...] = ()
    """The patterns that match it, and those of the modules that need it."""
    knows_builtin: bool = True
    """The tree says which modules are part of the kernel image."""
    is_closed: bool = False
    """kernel.modules_disabled is set: the kernel takes no module until the next boot."""


@dataclass(frozen=True, slots=True)
class Hardening:
    """The state of a module that should be kept out."""

    module: str
    state: str
    """absent, unknown, builtin, loaded, loadable, uncertain or blocked."""
    text: str

    @property
    def is_met(self) -> bool:
        """Whether the module is kept out."""
        return self.state in ("absent", "blocked")


def judge(known: Known, plan: Planner, sealed: Planner | None = None) -> Hardening:
    """Return whether a module is kept out. sealed: plans under the daemon's seal; None: it is not sealed."""
    module = known.name
    if known.state == "builtin":
        return Hardening(module, "builtin", "part of the kernel image: no configuration of modules keeps it out")
    ways = "; ".join(_ways(known, plan))
    if known.state:
        again = "it is kept out once it is removed"
        if ways:
            again = f"it can be loaded again by {ways}"
        return Hardening(module, "loaded", f"loaded now; {again}")
    if known.is_closed:
        more = f"; else it can be loaded by {ways}" if ways else ""
        return Hardening(module, "blocked", f"kernel.modules_disabled=1 until the next boot{more}")
    if sealed and ways and not any(_ways(known, sealed)):
        until = "sealed until the next boot or `kmodd seal --undo`"
        return Hardening(module, "blocked", f"{until}; else it can be loaded by {ways}")
    if ways:
        return Hardening(module, "loadable", f"can be loaded by {ways}")
    return _kept_out(known, plan(module, "operator", "root"))


def _kept_out(known: Known, named: Plan) -> Hardening:
    """Return the answer for a module that no request brings. named: the plan of root for its name."""
    entries = [entry for goal in named.goals for entry in goal.entries if entry.module == known.name]
    for entry in entries:
        if isinstance(entry, Install) and (refusal := refusal_of(entry.command)) and not refusal.is_certain:
            return Hardening(known.name, "uncertain", f"{effect_of(entry)}: install at {entry.at}")
    if not known.in_tree and not known.knows_builtin:
        text = "not in the module tree, which does not say what is part of the kernel image: no modules.builtin"
        return Hardening(known.name, "unknown", text)
    skips = [skip.why() for goal in named.goals for skip in goal.entries if isinstance(skip, Skip) and skip in entries]
    if not known.in_tree and not skips and not any(isinstance(entry, Install) for entry in entries):
        if known.name not in KNOWN_NAMES:
            return Hardening(known.name, "unknown", "not in the module tree, and not known as the name of a module")
        return Hardening(known.name, "absent", "not in the module tree")
    others = [skip.why() for goal in named.goals for skip in goal.entries if isinstance(skip, Skip)]
    return Hardening(known.name, "blocked", next(iter([*skips, *others]), "nothing loads it"))


def _ways(known: Known, plan: Planner) -> Iterator[str]:
    """Yield by whom a module can be loaded, and by what name: `root (modprobe cramfs)`."""
    module = known.name
    named = plan(module, "operator", "root")
    if _goal_with(named, module):
        commands = [step for step in named.steps if isinstance(step, Install) and step.module == module]
        effect = f", install at {commands[0].at}: {effect_of(commands[0])}" if commands else ""
        yield f"root (modprobe {module}{effect})"
    for alias in filter(_is_of_device, known.aliases):
        if goal := _goal_with(plan(example_of(alias), "coldplug", ""), module):
            yield f"devices ({alias}{_dependency(goal, module)})"
            break
    whom: dict[str, str] = {}
    for alias in known.aliases:
        if _is_of_device(alias) or len(whom) == len(ASKERS):
            continue
        for kind in ASKERS:
            if kind not in whom and (goal := _goal_with(plan(example_of(alias), "request", kind), module)):
                whom[kind] = f"{_spelled(alias)}{_dependency(goal, module)}"
    for name in dict.fromkeys(whom.values()):
        yield f"processes of {', '.join(kind for kind in ASKERS if whom.get(kind) == name)} ({name})"


def _is_of_device(alias: str) -> bool:
    return ":" in alias and not alias.startswith("devname:")


def _dependency(goal: str, module: str) -> str:
    return f", as {goal} needs it" if goal != module else ""


def _goal_with(plan: Plan, module: str) -> str:
    """Return the goal of a plan that brings a module; empty: none. What is blacklisted for it does not come."""
    for goal in plan.goals:
        own = [entry for entry in goal.entries if entry.module == goal.module]
        if not goal.comes or any(isinstance(entry, Skip) and entry.reason == "blacklisted" for entry in own):
            continue
        if any(entry.module == module and isinstance(entry, Insmod | Install) for entry in goal.entries):
            return goal.module
    return ""


def _spelled(alias: str) -> str:
    """Return a name as the kernel requests it."""
    found = _KERNEL_NAMES.match(alias)
    if not found:
        return alias
    end = len(alias) if alias.startswith(_NUMBERED) else found.end()
    return alias[:end].replace("_", "-") + alias[end:]


def example_of(pattern: str) -> str:
    """Return a name that a pattern of fnmatch(3) matches: nothing for `*`, `0` for `?`, the first of a bracket."""
    return re.sub(r"\[(.)[^]]*\]", r"\1", pattern).replace("*", "").replace("?", "0")
