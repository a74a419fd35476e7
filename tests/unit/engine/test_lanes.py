"""What has a loader at the same time, and what waits: for a lane, or for a load in flight."""

from __future__ import annotations

import pytest

from kmodd.engine.in_flight import MAX_INTERACTIVE
from tests.world import World, results


def test_devices_share_one_lane_and_a_request_of_the_kernel_has_its_own(world: World) -> None:
    """A request made while a load is in flight must never wait for the lane that runs that init."""
    world.plug("pci:v2")
    world.plug("pci:v1", "other")
    world.advance()
    assert world.loading == ["c"]
    world.ask("a")
    world.advance()
    assert world.loading == ["c", "a"]
    world.finish("a")
    world.advance()
    assert [job.plan.request.text for job in world.pop_finished()] == ["a"]
    world.settle()
    assert world.calls == ["a", "c", "b"]


def test_lanes_sets_the_number_of_lanes_for_devices(world: World) -> None:
    world.configure("[Kmodd]\nLanes=2\n")
    world.reload()
    world.plug("pci:v2")
    world.plug("pci:v1", "other")
    world.advance()
    assert world.loading == ["c", "a"]


def test_one_load_of_a_module_is_in_flight_and_other_requests_wait_for_it(world: World) -> None:
    world.plug("pci:v1")  # a, then b
    world.advance()
    world.ask("a")
    world.advance()
    assert world.loading == ["a"]
    assert not world.engine.is_idle
    jobs = world.settle()
    assert world.calls == ["a", "b"]
    found = {job.plan.request.origin: [each.result for each in job.outcomes] for job in jobs}
    assert found == {"request": ["live"], "uevent": ["loaded", "loaded"]}


def test_processes_that_wait_for_a_load_do_not_keep_devices_from_theirs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any process can make the kernel ask for a module in flight."""
    monkeypatch.setattr("kmodd.engine.in_flight.MAX_PARKED", 3)
    for _ in range(5):
        world.ask("a")
    world.advance()
    assert len(world.state.in_flight.parked) == 4
    world.plug("pci:v2")
    world.advance()
    assert world.loading == ["a", "c"]


def test_a_bounded_number_of_devices_wait_for_a_load_and_the_others_in_the_queue(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kmodd.engine.in_flight.MAX_PARKED", 3)
    world.ask("a")
    world.advance()
    for number in range(5):
        world.plug(f"pci:v1x{number}")
    world.advance()
    assert (len(world.state.in_flight.parked), len(world.state.queue)) == (3, 2)


def test_an_operator_s_request_sees_the_result_of_the_one_before(world: World) -> None:
    world.order("c")
    world.order_removal("c")
    world.ask("a")
    world.ask("b")
    world.advance()
    assert world.loading == ["c", "a"]
    found = results(world.settle())
    assert [each for each in found if each[0] == "c"] == [("c", "loaded"), ("c", "removed")]


def test_at_most_fifty_requests_of_the_kernel_are_in_flight(world: World) -> None:
    names = [f"m{number}" for number in range(60)]
    for name in names:
        (world.modules / f"{name}.ko").write_bytes(b"\x7fELF")
    world.index([f"{name}.ko:" for name in names], [])
    for name in names:
        world.ask(name)
    world.advance()
    assert len(world.loading) == MAX_INTERACTIVE == 50
    world.settle()
    assert sorted(world.calls) == sorted(names)
    assert world.turned_away == []
