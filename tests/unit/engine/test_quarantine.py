"""Loaders that die, and modules that crashed: these are never given to the kernel again."""

from __future__ import annotations

import errno

import pytest

from kmodd.state.quarantine import Quarantine
from tests.world import World, results


def test_a_killed_loader_costs_one_module_and_the_others_are_loaded(world: World) -> None:
    world.plug("pci:v2")
    world.advance()
    world.die("c")
    assert "its loader was killed" in world.records[-1].message
    assert world.told() == [("c", "failed")]
    world.plug("pci:v1")
    world.settle()
    assert world.told() == [("a", "loaded"), ("b", "loaded")]


@pytest.mark.parametrize(("state", "result"), [("Live", "loaded"), ("Loading", "crashed")])
def test_the_kernel_s_list_decides_how_a_dead_loader_s_module_stands(world: World, state: str, result: str) -> None:
    """An oops leaves the name in state coming; a kill after init leaves it live."""
    world.plug("pci:v2")
    world.advance()
    world.write_modules({"c": state})
    world.die("c")
    assert world.told() == [("c", result)]


def test_a_crashed_module_stays_out_for_the_next_daemon_too(world: World) -> None:
    """The kernel keeps the name in state coming; a second load of it blocks."""
    world.write_modules({"c": "Loading"})
    again = World(world.root, quarantine=Quarantine({"c"}))
    assert again.state.foreign.awaited() == []
    again.ask("c")
    again.advance()
    assert results(again.pop_finished()) == [("c", "crashed")]
    assert again.started == {}
    control = World(world.root)
    assert control.state.foreign.awaited() == ["c"]


@pytest.mark.parametrize(("state", "calls"), [("Live", ["a", "b"]), ("Loading", ["a"])])
def test_a_module_that_another_process_has_loaded_after_all_has_not_crashed(
    world: World, state: str, calls: list[str]
) -> None:
    """Our loader was killed while it waited for that process; what needs the module is tried again."""
    world.plug("pci:v1")
    world.advance()
    world.write_modules({"a": "Loading"})
    world.die("a")
    assert world.told() == [("a", "crashed"), ("b", "not_attempted")]
    world.write_modules({"a": state})
    world.pass_time(1.0)
    assert len(world.replays) == (state == "Live")
    world.replay("pci:v1")
    world.settle()
    assert world.calls == calls


def test_what_needs_a_crashed_module_fails_with_that_reason(world: World) -> None:
    world.write_modules({"a": "Loading"})
    again = World(world.root, quarantine=Quarantine({"a"}))
    again.plug("pci:v1")
    again.settle()
    assert again.records[1].message == "Not loading b for 0000:01:00.0: a crashed in the kernel"
    assert again.told() == [("a", "crashed"), ("b", "not_attempted")]
    assert again.calls == []


def test_a_softdep_whose_dependency_crashed_is_not_tried(world: World) -> None:
    """The kernel would wait 30 s for the dependency; without a softdep, its failure ends the goal before."""
    world.index(deps=["a.ko:", "b.ko: a.ko", "c.ko:"], aliases=["alias pci:v2* c"])
    (world.root / "etc/modprobe.d/x.conf").write_text("softdep c pre: b\n")
    world.reload()
    world.oops = {"a"}
    world.plug("pci:v2")
    world.settle()
    assert world.calls == ["a", "c"]
    assert ("b", "not_attempted") in world.told()


def test_a_softdep_whose_dependency_failed_is_tried(world: World) -> None:
    """As by kmod, which ignores failures of softdeps; the kernel refuses it at once."""
    world.index(deps=["a.ko:", "b.ko: a.ko", "c.ko:"], aliases=["alias pci:v2* c"])
    (world.root / "etc/modprobe.d/x.conf").write_text("softdep c pre: b\n")
    world.reload()
    world.refuse = {"a": errno.EIO}
    world.plug("pci:v2")
    world.settle()
    assert world.calls == ["a", "b", "c"]
