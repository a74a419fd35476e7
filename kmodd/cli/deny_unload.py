"""Remove the modules that `kmodd deny --unload` denies, in this process."""

from __future__ import annotations

from kmodd.host.bound_devices import devices_of
from kmodd.host.uses import read_uses
from kmodd.loader.in_process import InsertOptions, Machine
from kmodd.planning.essentials import lost_without
from kmodd.planning.removal import RemovalJob, RemovalPlan
from kmodd.planning.reply import outcome_of
from kmodd.planning.unload import Unload, Unloaded, held_besides, removal_order, removals_of, result_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kmodd.host.tree import Tree
    from kmodd.index.catalog import Snapshot
    from kmodd.planning.outcome import Outcome


def unload_of(modules: Sequence[str], tree: Tree, snapshot: Snapshot) -> Unload:
    """Return what the removal of modules does; nothing if none of them is loaded."""
    loaded = tree.loaded()
    order = removal_order(modules, loaded)
    devices = tuple((name, device) for name in order for device in devices_of(name, tree.root))
    builtin = tuple(name for name in modules if name not in order and snapshot.catalog.is_builtin(name))
    # A remove command may end what uses the module.
    held = tuple(each for each in held_besides(order, loaded) if not snapshot.lines.remove(each[0]))
    lost = lost_without(order, read_uses(tree.root), snapshot)
    unexplained = tuple(each for each in held if not lost_without([each[0]], lost, snapshot))
    return Unload(order, builtin, devices, lost, held, unexplained)


def carry_out(
    modules: Sequence[str], plan: Unload, tree: Tree, snapshot: Snapshot, machine: Machine | None = None
) -> Unloaded:
    """Remove the modules of a plan, as `modprobe -r --remove-holders` does, but no softdeps and no dependencies.

    Each is removed by its own name, as the module tree may lack a loaded module, or have another for the name.
    modules: those that are denied. machine: removes them and keeps the records; None: this one.
    """
    machine = machine or Machine()
    outcomes: list[Outcome] = []
    for request, removal in removals_of(modules, plan.modules, tree.loaded(), snapshot.lines.remove):
        job = RemovalJob(RemovalPlan(request, (removal,)), tree.loaded)
        while step := job.next_step():
            reply = machine.carry_out(step, InsertOptions(), tree.real)
            job.finish(outcome_of(request, step, reply))
        for outcome in job.pop_outcomes():
            machine.tell(outcome)
            outcomes.append(outcome)
    loaded = tree.loaded()
    uses = read_uses(tree.root)
    left = [name for name in plan.modules if loaded.state(name)]
    return result_of(plan, outcomes, loaded, {name: lost_without([name], uses, snapshot) for name in left})
