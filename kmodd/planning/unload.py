"""What `kmodd deny --unload` removes, and what it says of it."""

from __future__ import annotations

import errno

from kmodd.dataclass import dataclass
from kmodd.names import ModuleName

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

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
    if outcome and outcome.result == "removed":
        return "it was loaded again"
    if line.holders:
        verbs = "use it and stay" if len(line.holders) > 1 else "uses it and stays"
        return f"{', '.join(line.holders)} {verbs}"
    if outcome and outcome.result == "not_removed" and outcome.errno != errno.EAGAIN:
        if outcome.at:
            return f"its remove command at {outcome.at} failed"
        words = f", {outcome.load_error.words}" if outcome.load_error and outcome.load_error.words else ""
        return f"the kernel refuses to remove it: {errno.errorcode.get(outcome.errno, outcome.errno)}{words}"
    by = f" by {', '.join(map(str, uses))}" if uses else ""
    count = f", with {line.refcnt} reference{'s' if line.refcnt > 1 else ''}" if line.refcnt and line.refcnt > 0 else ""
    return f"it is in use{by}{count}"


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
        "removed": None if result is None else list(result.removed),
        "stayed": None if result is None else [{"module": name, "why": why} for name, why in result.stayed],
    }


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))
