"""Jobs that wait for a load in flight: what their plan rests on may change meanwhile."""

from __future__ import annotations

import errno

from kmodd.engine.in_flight import MAX_PARKED
from tests.world import World, results


def _add(world: World, name: str) -> None:
    world.add_live(name)
    world.module_event("add", name)


def _remove(world: World, name: str) -> None:
    world.remove_live(name)
    world.module_event("remove", name)


def test_a_device_that_waits_for_a_load_is_planned_again_when_a_module_is_removed(world: World) -> None:
    _add(world, "a")
    world.ask("b")
    world.plug("pci:v1")
    world.advance()
    _remove(world, "a")
    world.finish("b", errno.ENOENT)
    world.settle()
    assert world.calls == ["b", "a", "b"]


def test_a_caller_that_waits_for_a_load_is_planned_again_when_a_module_is_removed(world: World) -> None:
    _add(world, "a")
    world.plug("pci:v1")
    world.advance()
    asked = world.ask("b")
    world.advance()
    _remove(world, "a")
    world.finish("b", errno.ENOENT)
    answers = [job for job in world.settle() if job.plan.request is asked]
    assert results(answers) == [("a", "loaded"), ("b", "loaded")]


def test_a_job_that_waits_for_a_load_keeps_its_plan_while_nothing_is_removed(world: World) -> None:
    """The control of the above."""
    _add(world, "a")
    world.ask("b")
    world.plug("pci:v1")
    world.advance()
    _remove(world, "x")
    world.finish("b", errno.ENOENT)
    world.settle()
    assert world.calls == ["b", "b"]


def test_an_outcome_of_a_job_that_waited_for_a_load_is_recorded_once(world: World) -> None:
    _add(world, "a")
    world.index(deps=["a.ko:", "b.ko:"], aliases=["alias pci:v1* a", "alias pci:v1* b"])
    world.reload()
    world.ask("b")
    world.plug("pci:v1", "device1")
    world.advance()
    _remove(world, "x")
    world.settle()
    assert sorted(world.told()) == [("a", "live"), ("b", "live"), ("b", "loaded")]


def test_events_of_a_device_that_waits_for_a_load_are_one_job(world: World) -> None:
    """The load hangs, and the device is triggered again and again: other devices still have their turn."""
    world.configure("[Kmodd]\nLanes=2\n")
    world.reload()
    world.plug("pci:v1", "first")
    world.advance()
    assert world.batch("a").modules == ["a", "b"]
    for number in range(MAX_PARKED + 1):
        world.plug("pci:v1", f"device{number % 3}", synthetic=True)
        world.advance()
    ((_, _, job),) = world.state.in_flight.parked
    assert sorted(job.plan.request.devices) == ["/devices/device0", "/devices/device1", "/devices/device2"]
    world.plug("pci:v2", "other")
    world.advance()
    assert world.loading == ["a", "c"]
    world.settle()
    assert world.calls == ["a", "c", "b"] or world.calls == ["a", "b", "c"]
    assert world.engine.is_idle
