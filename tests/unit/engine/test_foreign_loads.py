"""Loads that other processes, or an earlier daemon, have begun."""

from __future__ import annotations

from pathlib import Path

from kmodd.planning.record import ADOPTED
from kmodd.state.quarantine import Quarantine
from tests.world import World


def adopted(folder: Path) -> World:
    """A daemon that starts while the kernel is loading c."""
    World(folder).write_modules({"c": "Loading"})
    return World(folder)


def test_a_load_under_way_is_adopted_and_waited_for(tmp_path: Path) -> None:
    world = adopted(tmp_path)
    assert ADOPTED in world.ids()
    world.plug("pci:v2")
    world.advance()
    assert world.loading == []
    world.live("c")
    world.pass_time(1)
    assert ("c", "loaded") in world.told()
    assert world.engine.is_idle or world.replays == ["all"]


def test_a_dependent_waits_while_another_process_loads_its_dependency(world: World) -> None:
    """The kernel would have it wait 30 s, and fail."""
    world.write_modules({"a": "Loading"})
    world.pass_time(1.1)
    world.plug("pci:v1")
    world.advance()
    assert world.started == {}
    assert world.state.foreign.awaited() == ["a"]
    world.live("a")
    world.pass_time(0.5)
    assert world.loading == ["b"]
    world.settle()
    assert world.calls == ["b"]


def test_a_load_by_the_daemon_is_not_followed_as_foreign(world: World) -> None:
    """A job that waits for the load goes on with the loader's reply, not with the next read of /proc/modules."""
    world.plug("pci:v2")
    world.advance()
    world.write_modules({"c": "Loading"})
    world.pass_time(1.1)
    world.order("c")
    world.advance()
    assert world.state.foreign.awaited() == []
    world.live()
    world.finish("c")
    world.advance()
    assert [job.plan.request.origin for job in world.pop_finished()] == ["uevent", "operator"]
    assert world.engine.is_idle


def test_a_module_is_tried_once_a_stuck_foreign_load_has_failed(tmp_path: Path) -> None:
    world = adopted(tmp_path)
    world.pass_time(world.state.system.settings.stuck_after + 1)
    world.plug("pci:v2")
    world.settle()
    assert ("c", "stuck") in world.told()
    world.live()
    world.pass_time(1)
    assert world.replays == ["all"]
    world.plug("pci:v2", synthetic=True)  # as the replay would
    world.settle()
    assert world.calls == ["c"]


def test_a_module_that_the_kernel_does_not_have_has_not_crashed(tmp_path: Path) -> None:
    """A loader was killed while another process started the same module: it only looked like an oops.

    After an oops the name is there for ever.
    """
    World(tmp_path).write_modules({"c": "Loading"})
    quarantine = Quarantine()
    quarantine.crash("c")
    world = World(tmp_path, quarantine=quarantine)
    world.plug("pci:v2")
    world.settle()
    assert world.calls == []
    world.live("a")
    world.pass_time(2)
    world.plug("pci:v2")
    world.settle()
    assert world.calls == ["c"]
    assert world.state.quarantine.crashed == set()
