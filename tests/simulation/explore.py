"""Explores a small world exhaustively: every order of what can happen, with at most one fault at any moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from kmodd.engine.policy_state import PolicyState
from kmodd.engine.reporter import Reporter
from kmodd.index.catalog import Snapshot
from kmodd.planning.plan import Plan
from tests.simulation.files import SimMachine
from tests.simulation.invariants import Violation
from tests.simulation.kernel import OTHERS
from tests.simulation.rest import rest
from tests.simulation.simulation import Simulation


@dataclass(frozen=True)
class SmallWorld:
    """A machine of few modules, and what may go wrong once."""

    name: str
    setup: tuple[str, ...]
    later: tuple[str, ...] = ()
    """Lines that happen once each, at any moment."""
    faults: tuple[str, ...] = ()
    """Lines of which one may happen, at any moment. `{}` stands for each module that a loader is at."""


@dataclass
class Explored:
    """What was found."""

    states: int = 0
    transitions: int = 0
    depth: int = 0
    """Lines after the setup, at most."""
    ends: int = 0
    """States in which nothing but time could go on: each was brought to rest."""
    violations: dict[str, list[str]] = field(default_factory=dict)
    """Kind of violation → the first lines that lead to it."""


def explore(world: SmallWorld, limit: int = 1_000_000) -> Explored:
    """Visit each state once, depth first. `limit`: number of states after which to end."""
    found, seen = Explored(), set[int]()
    todo: list[tuple[str, ...]] = [()]
    while todo and found.states < limit:
        path = todo.pop()
        sim = Simulation()
        try:
            sim.play(world.setup)
            sim.play(path)
            _follow(world, sim, path, found, seen, todo)
        except Violation as violation:
            found.violations.setdefault(violation.kind, [*world.setup, *path])
    return found


def _follow(
    world: SmallWorld,
    sim: Simulation,
    path: tuple[str, ...],
    found: Explored,
    seen: set[int],
    todo: list[tuple[str, ...]],
) -> None:
    """Go on from a state to a state that was seen before, or in which nothing can happen. Raises Violation."""
    while True:
        left = tuple(line for line in world.later if line not in path)
        used = next((line for line in path if line in _faults(world, sim, path)), "")
        key = hash((left, bool(used), digest(sim)))
        if key in seen:
            return
        seen.add(key)
        found.states += 1
        found.depth = max(found.depth, len(path))
        usual = _enabled(sim)
        lines = [*usual, *left, *(() if used else _faults(world, sim, path))]
        found.transitions += len(lines)
        todo += [(*path, line) for line in lines[1:]]
        if not usual and not left:
            found.ends += 1
            rest(sim)
            return
        path = (*path, lines[0])
        sim.do(lines[0])


def _faults(world: SmallWorld, sim: Simulation, path: tuple[str, ...]) -> list[str]:
    """The faults that can happen, and those that have."""
    modules = dict.fromkeys(loader.module for loader in sim.loaders.busy())
    lines = []
    for fault in world.faults:
        if "{}" in fault:
            lines += [fault.format(module) for module in modules]
            head, _, tail = fault.partition("{}")
            lines += [line for line in path if line.startswith(head) and line.endswith(tail) and line not in lines]
        else:
            lines.append(fault)
    return lines


def _enabled(sim: Simulation) -> list[str]:
    """What can happen without a fault."""
    lines: dict[str, None] = {}
    for loader in sim.loaders.busy():
        if not loader.is_begun:
            lines[f"begin {loader.module}"] = None
        elif loader.call is None or _can_end(sim, loader.module):
            lines[f"finish {loader.module}"] = None
    for call in sim.kernel.calls:
        if call.pid == OTHERS and sim.kernel.can_finish(call):
            lines[f"finish {call.module}"] = None
    if sim.daemon is None:
        lines["start"] = None
    elif sim.has_unread() or sim.daemon.orders or sim.daemon.engine.can_advance(sim.now):
        lines["round"] = None
    return list(lines)


def _can_end(sim: Simulation, module: str) -> bool:
    """Whether the call of the loader at the module can return, or go on."""
    loader = sim.loaders.at(module)
    call = loader.call if loader else None
    if call is None:
        return False
    if call.waits_for:
        return sim.kernel.state(call.waits_for) != "coming"
    ends = sim.kernel.init(module).ends
    return sim.kernel.can_finish(call) or (ends == "oopses" and not call.is_blocked)


# -- the state as a value -----------------------------------------------------------------------------------------


def digest(sim: Simulation) -> int:
    """A hash of all that decides what can follow. Numbers of loaders and batches only order them, and do not count."""
    names = {loader.pid: f"{loader.module} {loader.has_done}" for loader in sim.loaders.all}
    kernel = sim.kernel
    calls = sorted(
        (c.module, c.removes, c.waits_for, c.asked, c.is_blocked, c.is_killed, names.get(c.pid, ""))
        for c in kernel.calls
    )
    modules = [(name, module.state, module.is_crashed) for name, module in kernel.modules.items()]
    inits = sorted((name, repr(init)) for name, init in kernel.inits.items())
    loaders = sorted(
        (tuple(step.module for step in each.steps), each.is_begun, each.is_stopping, each.is_orphan, each.is_over,
         tuple(type(event).__name__ + str(getattr(event, "reply", "")) for event in each.outbox))
        for each in sim.loaders.all
    )  # fmt: skip
    parts: list[object] = [sim.now, calls, modules, inits, loaders, kernel.uevents, sorted(kernel.devices.items())]
    if sim.daemon:
        parts += [sim.daemon.socket, [request.text for request in sim.daemon.calls], sim.daemon.questions]
        parts.append(_value(sim.daemon.engine, names, {}))
        parts.append(sim.run.standing)
    return hash(repr(parts))


_LEFT_OUT = (SimMachine, Snapshot, Reporter, PolicyState, Plan)
"""What does not differ where the rest does not, or is only written."""
_NUMBERS = frozenset({"number", "batch", "_batches", "age", "_next_number"})


def _value(what: object, names: Mapping[int, str], seen: dict[int, int]) -> object:
    """Nested tuples of what an object holds, objects that were there before by their turn."""
    if what is None or isinstance(what, str | bytes | bool | float | Enum):
        return what
    if isinstance(what, int):
        return names.get(what, what)
    if isinstance(what, set | frozenset):
        return sorted(map(repr, what))
    if isinstance(what, (*_LEFT_OUT, type)) or callable(what):
        return type(what).__name__
    if id(what) in seen:
        return ("same", seen[id(what)])
    seen[id(what)] = len(seen)
    if isinstance(what, Mapping):
        is_numbered = all(isinstance(key, int) for key in what)
        items: Iterable[tuple[object, object]] = ((0, each) for each in what.values()) if is_numbered else what.items()
        return [(str(key), _value(each, names, seen)) for key, each in items]
    if isinstance(what, list | tuple):
        return [_value(each, names, seen) for each in what]
    return [(name, _value(each, names, seen)) for name, each in _fields(what) if name not in _NUMBERS]


def _fields(what: object) -> list[tuple[str, object]]:
    """The fields of an object, in slots or not."""
    found = dict(getattr(what, "__dict__", {}))
    for kind in type(what).__mro__:
        for name in getattr(kind, "__slots__", ()):
            if hasattr(what, name):
                found[name] = getattr(what, name)
    return sorted(found.items())


_ABC = (
    "kernel 6.1", "module a", "module b a", "module c", "alias pci:v1* b", "alias pci:v2* c", "set StuckAfterSec 20",
)  # fmt: skip
_TWO = ("plug d1 pci:v1", "plug d2 pci:v2", "start", "round")
_FAULTS = (
    "kill {}", "kill {} ends", "init a oops", "init b oops", "init c oops", "init a refuses EIO",
    "init b refuses EBUSY", "init c refuses ENODEV", "kill-daemon", "tick", "other-load c", "other-remove a",
    "unplug d1", "lose",
)  # fmt: skip

_SLEEPING: tuple[tuple[str, ...], tuple[str, ...]] = (
    (*_ABC, "set Lanes auto", "init a sleeps", "init b sleeps", "init b asks c", *_TWO),
    ("wait 0.004", "wait 0.005", "wait 0.006"),
)

SMALL_WORLDS = (
    SmallWorld("an init asks for a third module", (*_ABC, "set Lanes 2", "init b asks c", *_TWO), (), _FAULTS),
    SmallWorld("an init asks for itself", (*_ABC, "set Lanes 2", "init b asks b", *_TWO), (), _FAULTS),
    SmallWorld("two inits ask for each other", (*_ABC, "set Lanes 2", "init b asks c", "init c asks b", *_TWO)),
    SmallWorld("a dependency asks for its user", (*_ABC, "set Lanes 2", "init a asks b", *_TWO), (), _FAULTS),
    SmallWorld(
        "one lane, two callers", (*_ABC, "set Lanes 1", "init c asks b", *_TWO), ("order b", "ask c 0"), ("tick",)
    ),
    SmallWorld("lanes open while inits sleep", *_SLEEPING),
    SmallWorld(
        "an init sleeps as it waits for another's module",
        (*_ABC, "set Lanes auto", "init c sleeps", "init c asks b", "init a asks c", *_TWO),
        ("wait 0.004", "wait 0.005", "wait 0.006"), ("init c oops", "init c runs", "other-load c"),
    ),
    SmallWorld("an operator removes", (*_ABC, "set Lanes 2", "init b asks c", *_TWO), ("remove b",), ("kill-daemon",)),
)  # fmt: skip
"""Three modules, two lanes or those of auto, one nested request, one fault."""

LARGE_WORLD = SmallWorld(
    "lanes open while inits sleep, and a fault", *_SLEEPING, ("kill {}", "init a oops", "init b oops", "kill-daemon")
)
"""More states than the others have together."""
