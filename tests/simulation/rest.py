"""Brings a simulated machine to rest: every load ends, time passes, and a new daemon finds nothing to do."""

from __future__ import annotations

import contextlib

from kmodd.state.result_cache import SOON
from tests.simulation.invariants import Violation
from tests.simulation.kernel import OTHERS
from tests.simulation.simulation import Simulation

MAX_WAKES = 3000
"""Times that the daemon may wake up by itself until it rests."""

RETRIES_TAKE = 60
"""Seconds within which all retries of a transient error are over."""

CALM = (
    "spawner on", "names now", "stops now", "stacks on", "trace on", "hold off", "run ok", "journald on", "memory ok",
    "unhide", "start", "round",
)  # fmt: skip


class _NoRest(Exception):
    """A load waits for a module that another process's load has left crashed.

    It fails after 30 s, and the search for drift tries it again without end.
    """


def rest(sim: Simulation) -> None:
    """Have all loads end, first all but those that hang, then these; then restart the daemon. Raises Violation."""
    with contextlib.suppress(_NoRest):
        _rest(sim)


def _rest(sim: Simulation) -> None:
    sim.play(CALM)
    if sim.daemon and sim.daemon.engine.state.policy.sealed:
        sim.do("tell unseal")  # only then: it replays sysfs, which would find what was lost
    if sim.daemon and sim.daemon.engine.state.system.settings.reconcile_every < RETRIES_TAKE:
        for name, init in sim.kernel.inits.items():
            if init.errno in SOON:
                sim.do(f"init {name} refuses ENODEV")  # the search for drift would begin new retries without end
    settle(sim)
    for name, init in sim.kernel.inits.items():
        if init.ends in ("hangs", "waits"):
            sim.do(f"init {name} ok")
    settle(sim)
    sim.invariants.at_rest()  # before the search for drift, which would find what was lost
    if sim.daemon:
        sim.do(f"wait {sim.daemon.engine.state.system.settings.reconcile_every + 1}")
    settle(sim)
    sim.invariants.at_rest()
    _restart(sim)


def settle(sim: Simulation) -> None:
    """Play until nothing is under way but what hangs. Raises Violation."""
    stuck_after = sim.daemon.engine.state.system.settings.stuck_after if sim.daemon else 60
    end, wakes = sim.now + 4000 + 200 * stuck_after, 0
    while not _step(sim):
        deadline = sim.daemon.deadline() if sim.daemon else None
        if deadline is None:
            raise Violation("sleeps", f"nothing wakes the daemon: {sim.invariants.summary()}")
        wakes += 1
        if wakes > MAX_WAKES or sim.now > end:
            if any(each.call and _is_dead(sim, each.call.waits_for) for each in sim.loaders.busy()):
                raise _NoRest
            raise Violation("restless", f"{wakes} wakes, {sim.invariants.summary()}")
        sim.now = max(sim.now + 0.001, deadline)


def _is_dead(sim: Simulation, module: str) -> bool:
    """Whether the init of the module has crashed, so that no wait for it succeeds."""
    return module in sim.kernel.modules and sim.kernel.modules[module].is_crashed


def _step(sim: Simulation) -> bool:
    """Have all that can end now end. Returns whether the machine is at rest."""
    sim.do("round")
    before: object = None
    goes = 0
    while (progress := _progress(sim)) != before or sim.has_unread():
        before = progress
        for loader in sim.loaders.busy():
            sim.loaders.finish(loader, sim.now)
        for call in [call for call in sim.kernel.calls if call.pid == OTHERS]:
            sim.finish_other(call)
        sim.do("round")
        goes += 1
        if goes > MAX_WAKES:
            raise Violation("circle", f"{goes} rounds without time passing, {sim.invariants.summary()}")
    if sim.daemon is None:
        return True
    engine = sim.daemon.engine
    waits = engine.state.retries.deadline() or engine.state.supply.is_off(sim.now)
    waits = waits or engine.state.firmware.is_probing or engine.state.firmware.deadline() is not None
    waits = waits or any(sim.kernel.state(name) != "coming" for name in engine.state.foreign.stuck())
    return engine.is_idle and not waits and not sim.callers and not engine.can_advance(sim.now)


def _progress(sim: Simulation) -> object:
    """What differs if anything has gone on."""
    loaders = [
        (each.batch, each.has_done, each.is_begun, each.call and each.call.is_blocked) for each in sim.loaders.busy()
    ]
    return (sim.kernel.changes, len(sim.kernel.calls), sorted(sim.callers), loaders)


def _restart(sim: Simulation) -> None:
    """A new daemon loads nothing that a device wants, unless a record has said why it was not loaded before.

    A device that appears meanwhile does not count: the boot list may bring it.
    """
    aliases = list(sim.kernel.devices.values())
    before, told, logged = set(sim.kernel.modules), dict(sim.invariants.told), len(sim.records)
    sim.play(("kill-daemon", "start", "round"))
    settle(sim)
    sim.invariants.at_rest()
    wanted = {module for alias in aliases for module in sim.files.matches(alias)}
    fields = (dict(record.fields) for record in sim.records[logged:])
    listed = {each.get("KMODD_MODULE", "") for each in fields if each.get("KMODD_SOURCE") == "boot"}
    for name in sorted(wanted & set(sim.kernel.modules) - before - listed):
        if told.get(name, "loaded") in ("loaded", "live", "removed"):
            raise Violation("restart", f"only a new daemon loads {name}; last record before: {told.get(name)}")
