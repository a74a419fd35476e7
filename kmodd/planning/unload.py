"""What `kmodd deny --unload` removes, and what it says of it."""

from __future__ import annotations

import errno

from kmodd.dataclass import dataclass
from kmodd.names import ModuleName
from kmodd.planning.plan import Reason
from kmodd.planning.removal import Removal
from kmodd.planning.request import RemovalOptions, Request
from kmodd.text import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from kmodd.config.modprobe_d import Command
    from kmodd.kernel.proc_modules import Loaded, LoadedModule
    from kmodd.planning.essentials import Use
    from kmodd.planning.outcome import Outcome


@dataclass(frozen=True, slots=True)
class Unload:
    """The removal of denied modules, before it is carried out."""

    modules: tuple[str, ...] = ()
    """Loaded modules to remove, each behind those that use it."""
    builtin: tuple[str, ...] = ()
    """Denied modules that are built into the kernel."""
    devices: tuple[tuple[str, str], ...] = ()
    """Modules and devices that lose them as their driver."""
    lost: tuple[Use, ...] = ()
    """What is in use now and needs one of the modules."""
    held: tuple[tuple[str, int], ...] = ()
    """Modules that the kernel does not remove, each with the number of its references that are not of a module."""
    unexplained: tuple[tuple[str, int], ...] = ()
    """Those of them that nothing in `lost` needs."""


@dataclass(frozen=True, slots=True)
class Unloaded:
    """The result of a removal."""

    removed: tuple[str, ...]
    stayed: tuple[tuple[str, str], ...]
    """Modules that are still there, each with the reason."""


def removal_order(modules: Iterable[str], loaded: Loaded) -> tuple[str, ...]:
    """Return the loaded ones of `modules` and all modules that use them, each behind those that use it."""
    known = loaded.modules
    order: list[str] = []
    entered: set[str] = set()
    waiting = [(name, False) for name in reversed([*modules])]
    while waiting:
        name, is_left = waiting.pop()
        if is_left:
            order.append(name)
        elif name not in entered and (line := known.get(ModuleName(name))):
            entered.add(name)
            waiting.append((name, True))
            waiting += [(str(holder), False) for holder in reversed(line.holders)]
    return tuple(order)


def held_besides(modules: Iterable[str], loaded: Loaded) -> tuple[tuple[str, int], ...]:
    """Return the modules with references beside those of the modules that use them, and how many these are.

    Each user has one reference (kernel/module/main.c, add_module_usage).
    """
    known = loaded.modules
    lines = [line for name in modules if (line := known.get(ModuleName(name)))]
    counts = ((str(line.name), (line.refcnt or 0) - len(line.holders)) for line in lines)
    return tuple((name, count) for name, count in counts if count > 0)


def removals_of(
    denied: Iterable[str], order: Sequence[str], loaded: Loaded, command_of: Callable[[str], Command | None]
) -> Iterator[tuple[Request, Removal]]:
    """Yield the request and the removal of each module in `order`, those that use a denied module before it.

    command_of: returns the `remove` line of a module.
    """
    known = loaded.modules
    done: set[str] = set()
    for target in denied:
        options = RemovalOptions(only_deps=())
        line = [name for name in removal_order([target], loaded) if name in order and name not in done]
        for number, name in enumerate(line):
            done.add(name)
            used = [each for each in line[number + 1 :] if name in known[ModuleName(each)].holders]
            because = Reason("dep", used[0]) if used else Reason("asked", target)
            yield Request(target, "operator", removing=options), Removal(ModuleName(name), because, command_of(name))


def result_of(plan: Unload, outcomes: Sequence[Outcome], loaded: Loaded, uses: Mapping[str, Sequence[Use]]) -> Unloaded:
    """Return what was removed, and what stayed and why.

    loaded: the modules that the kernel has afterwards. uses: module → what is in use and needs it.
    """
    left = loaded.modules
    last = {outcome.module: outcome for outcome in outcomes}
    stayed = [(name, "it is built into the kernel") for name in plan.builtin]
    for name in plan.modules:
        if line := left.get(ModuleName(name)):
            stayed.append((name, _why(line, last.get(name), uses.get(name, ()))))
    return Unloaded(tuple(name for name in plan.modules if ModuleName(name) not in left), tuple(stayed))


def _why(line: LoadedModule, outcome: Outcome | None, uses: Sequence[Use]) -> str:
    if outcome and outcome.result == "removed" and outcome.at:
        return f"its remove command at {outcome.at} ended well and did not remove it"
    if outcome is None or outcome.result == "removed":
        return "it was loaded again"
    if line.holders:
        verbs = "use it and stay" if len(line.holders) > 1 else "uses it and stays"
        return f"{', '.join(line.holders)} {verbs}"
    if outcome.result == "not_removed" and outcome.errno != errno.EAGAIN:
        if outcome.at:
            return f"its remove command at {outcome.at} failed"
        words = f", {outcome.load_error.words}" if outcome.load_error and outcome.load_error.words else ""
        return f"the kernel refuses to remove it: {errno.errorcode.get(outcome.errno, outcome.errno)}{words}"
    by = f" by {', '.join(map(str, uses))}" if uses else ""
    count = f", with {count_of(line.refcnt, 'reference')}" if line.refcnt and line.refcnt > 0 else ""
    return f"it is in use{by}{count}"


def in_use(plan: Unload) -> str:
    """Return what a removal would fail on or break, as in `in use by the file system at /srv`; empty: nothing."""
    needing = [f"in use by {'; '.join(dict.fromkeys(map(str, plan.lost)))}"] if plan.lost else []
    needing += [f"{name} is in use, with {count_of(count, 'reference')}" for name, count in plan.unexplained]
    return "; ".join(needing)


def plan_sentences(plan: Unload) -> list[str]:
    """Return what a removal would do, without a full stop."""
    lines = [f"{name} cannot be removed: it is built into the kernel" for name in plan.builtin]
    if plan.modules:
        lines.append(f"Modules to remove, in this order: {', '.join(plan.modules)}")
    elif not plan.builtin:
        lines.append("Nothing to remove: none of the modules is loaded")
    if plan.devices:
        lines.append(f"Devices that lose their driver: {_listed(device for _, device in plan.devices)}")
    return lines


def result_sentences(plan: Unload, result: Unloaded) -> list[str]:
    """Return what a removal did, without a full stop."""
    lines = []
    if result.removed:
        lines.append(f"Removed {', '.join(result.removed)}")
    elif not result.stayed:
        lines.append("Nothing to remove: none of the modules is loaded")
    lines += [f"{name} stays: {why}" for name, why in result.stayed]
    if lost := [device for module, device in plan.devices if module in result.removed]:
        lines.append(f"Devices that lost their driver: {_listed(lost)}")
    return lines


def removal_as_object(plan: Unload, result: Unloaded | None) -> dict[str, object]:
    """Return a removal as JSON values. result: None if it was not carried out."""
    return {
        "modules": list(plan.modules),
        "devices": [{"module": module, "device": device} for module, device in plan.devices],
        "in_use": list(map(str, plan.lost)),
        "references": [{"module": module, "count": count} for module, count in plan.held],
        "removed": None if result is None else list(result.removed),
        "stayed": None if result is None else [{"module": name, "why": why} for name, why in result.stayed],
    }


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))
