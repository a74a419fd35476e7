"""Loads and removals that do not return: they are recorded and left alone, and the others go on."""

from __future__ import annotations

from kmodd.engine.batch import ANSWER_LIMIT
from kmodd.planning.record import INFO
from kmodd.planning.removal import RemovalJob
from tests.world import World


def hang(world: World, seconds: float = 61.0) -> None:
    """Let time pass in which no loader replies; no kernel stack can be read."""
    world.pass_time(seconds)
    while world.stacks:
        world.answer_stack()
    world.pass_time(0.0)


def awaited(world: World) -> list[str]:
    """The modules whose load is waited for."""
    return [batch.module for batch in world.state.in_flight.awaited()]


def test_a_load_that_hangs_is_recorded_and_left_and_the_lane_goes_on(world: World) -> None:
    world.plug("pci:v2")
    world.plug("pci:v1", "other")
    world.advance()
    hang(world, 59)
    assert awaited(world) == ["c"]
    world.write_modules({"c": "Loading"})
    hang(world, 2)
    assert world.told() == [("c", "stuck")]
    assert world.state.stuck() == ["c"]
    assert awaited(world) == ["a"]
    world.finish("a")
    world.finish("b")
    world.advance()
    assert world.engine.is_idle
    world.plug("pci:v2", "again")
    world.advance()
    assert world.told()[-1] == ("c", "stuck")  # a later request is answered at once
    assert world.replays == []
    world.finish("c")
    world.advance()
    assert world.told() == [("c", "loaded")]  # its late outcome
    assert world.state.stuck() == []
    assert world.replays == ["all"]


def test_stuck_after_sec_sets_the_time(world: World) -> None:
    world.configure("[Kmodd]\nStuckAfterSec=5\n")
    world.reload()
    world.plug("pci:v2")
    world.advance()
    hang(world, 4)
    assert world.told() == []
    hang(world, 2)
    assert world.told() == [("c", "stuck")]


def test_asynchronous_work_is_named_as_what_later_loads_wait_for(world: World) -> None:
    """An unrelated module waits in async_synchronize, its own init over: it is live by then."""
    world.plug("pci:v2")
    world.plug("pci:v1", "other")
    world.advance()
    world.live("c")
    hang(world)
    assert "the kernel waits for asynchronous work of a driver" in world.records[0].message
    assert awaited(world) == ["a"]
    world.live("c", "a")
    world.pass_time(1.1)
    assert "c was the first" in world.records[-2].message
    assert awaited(world) == ["b"]


def test_a_load_that_waited_for_asynchronous_work_is_counted_once(world: World) -> None:
    """It was recorded as loaded when it was given up, with what policy has to say."""
    (world.root / "etc/kmodd/policy.d").mkdir(parents=True)
    (world.root / "etc/kmodd/policy.d/x.conf").write_text("log module=c\n")
    world.configure("[Kmodd]\nPolicy=observe\n")
    world.reload()
    world.advance()
    world.replays.clear()
    world.plug("pci:v2")
    world.advance()
    world.live("c")
    hang(world)
    assert dict(world.records[-1].fields)["KMODD_VERDICT"] == "log"
    assert world.told() == [("c", "stuck"), ("c", "loaded")]
    world.finish("c")
    world.advance()
    (record,) = world.records
    assert (record.priority, "which was reported before, has ended" in record.message) == (INFO, True)
    assert world.told() == [("c", "live")]
    assert world.state.reporter.counters.results == {"stuck": 1, "loaded": 1}
    assert world.replays == []


def test_a_module_that_waits_for_asynchronous_work_is_live_for_later_requests(world: World) -> None:
    """No uevent says so: the kernel sends that of a module before its init."""
    world.plug("pci:v2")
    world.advance()
    hang(world, 59.9)
    world.plug("pci:v1", "other")  # has the list of modules read, which is good for a while
    world.advance()
    world.live("c")
    hang(world, 0.2)
    assert ("c", "loaded") in world.told()
    world.plug("pci:v2", "again")
    world.advance()
    assert world.told()[-1] == ("c", "live")


def test_a_removal_that_hangs_is_recorded_as_a_removal(world: World) -> None:
    world.live("c")
    world.order_removal("c")
    world.advance()
    hang(world)
    (record,) = world.records
    assert record.message.startswith("Stuck: removing c has been going on for 1min")
    assert "is left alone" in record.message
    (job,) = world.pop_finished()
    assert isinstance(job, RemovalJob)
    assert job.failed


def test_a_stack_that_does_not_come_is_not_waited_for(world: World) -> None:
    """The question is closed, and the load counts as stuck without a stack."""
    world.plug("pci:v2")
    world.advance()
    world.pass_time(61)
    assert [question.batch for question in world.stacks] == [world.batch("c").number]
    world.pass_time(ANSWER_LIMIT)
    assert world.stacks == []
    assert world.told() == [("c", "stuck")]
