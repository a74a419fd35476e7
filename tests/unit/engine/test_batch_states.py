"""The states of a batch, row by row of the table in engine/batch.py."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from kmodd.engine.batch import Batch
from kmodd.engine.events import LoaderReplied
from kmodd.planning.record import INFO
from kmodd.planning.reply import Reply
from tests.world import World

End = Callable[[World, str], None]
"""How the loader ends a batch at a module."""


def succeed(world: World, module: str) -> None:
    world.finish(module)


def fail(world: World, module: str) -> None:
    world.finish(module, errno.EIO)


def die(world: World, module: str) -> None:
    world.die(module)


def crash(world: World, module: str) -> None:
    world.crash(module)


ENDS: list[tuple[End, str]] = [(succeed, "loaded"), (fail, "failed"), (die, "failed"), (crash, "crashed")]
"""With the result of the module."""


@pytest.fixture
def world(world: World) -> World:
    """b needs a, then c."""
    world.index(deps=["a.ko:", "c.ko:", "b.ko: c.ko a.ko"], aliases=["alias pci:v1* b", "alias pci:v2* c"])
    world.reload()
    world.advance()
    world.replays.clear()
    return world


def start(world: World, alias: str = "pci:v1") -> Batch:
    """The batch of a device: a, c, b; or c alone."""
    world.plug(alias)
    world.advance()
    (batch,) = world.state.in_flight.batches.values()
    return batch


def come_in(world: World, module: str) -> None:
    """The module is live now, and its loader says so before it knows that it is to end."""
    world.batch(module).is_stopping = False
    world.remove_live(module)
    world.finish(module)


# -- running ----------------------------------------------------------------------------------------------------------


def test_a_running_batch_goes_on_after_a_reply(world: World) -> None:
    batch = start(world)
    world.finish("a")
    assert (batch.state, batch.module) == ("running", "c")
    assert world.told() == [("a", "loaded")]
    assert world.loading == ["c"]


@pytest.mark.parametrize(("end", "result"), ENDS)
def test_a_running_batch_is_done_at_its_last_reply_a_failure_or_a_death(world: World, end: End, result: str) -> None:
    batch = start(world, "pci:v2")
    end(world, "c")
    assert (batch.state, world.state.in_flight.batches) == ("done", {})
    assert world.told() == [("c", result)]
    assert world.state.quarantine.crashed == ({"c"} if result == "crashed" else set())
    assert len(world.pop_finished()) == 1


def test_a_running_batch_that_does_not_begin_a_step_is_done_and_its_step_is_started_again(world: World) -> None:
    batch = start(world)
    world.finish("a")
    world.told()
    world.skip("c")
    assert batch.state == "done"
    assert world.told() == []
    assert world.batch("c").modules == ["c", "b"]
    world.settle()
    assert world.calls == ["a", "c", "b"]


@pytest.mark.parametrize("is_live", [False, True])
def test_an_overdue_batch_is_given_up_and_its_loader_is_stopped(world: World, is_live: bool) -> None:
    batch = start(world)
    world.hang("a", is_live=is_live)
    assert batch.state == ("stalled" if is_live else "stuck")
    assert batch.stopping
    assert world.state.stuck() == ["a"]
    assert world.state.in_flight.interactive() == 0


def test_a_stuck_batch_fails_its_job_at_once(world: World) -> None:
    start(world)
    world.hang("a")
    assert world.told() == [("a", "stuck"), ("c", "not_attempted"), ("b", "not_attempted")]
    assert len(world.pop_finished()) == 1
    assert world.state.in_flight.serial() == 0, "the lane is free"


def test_a_stalled_batch_counts_its_module_as_loaded_and_the_job_goes_on(world: World) -> None:
    start(world)
    world.hang("a", is_live=True)
    assert world.told() == [("a", "stuck"), ("a", "loaded")]
    assert world.loading == ["a", "c"]
    assert world.batch("c").modules == ["c", "b"]


def test_a_batch_is_not_given_up_before_its_time(world: World) -> None:
    batch = start(world)
    world.pass_time(59)
    assert (batch.state, world.stacks) == ("running", [])


# -- stuck and stalled ------------------------------------------------------------------------------------------------


def test_a_stuck_batch_does_not_go_on(world: World) -> None:
    batch = start(world)
    world.hang("a")
    world.told()
    world.remove_live("a")
    world.finish("a")  # it comes in after all; c is not begun
    assert batch.state == "done"
    assert world.calls == ["a"]
    assert world.told() == [("a", "loaded")]
    world.advance()
    assert world.replays == ["all"], "devices that depended on it are tried again"


@pytest.mark.parametrize("is_live", [False, True])
def test_a_given_up_batch_is_detached_by_a_reply(world: World, is_live: bool) -> None:
    batch = start(world)
    world.hang("a", is_live=is_live)
    world.told()
    number = world.batch("a").number
    world.remove_live("a")
    world.add_live("a")
    world.handle(LoaderReplied(number, Reply(0, "kernel", 7)))
    assert (batch.state, batch.module) == ("detached", "c")
    assert world.told() == [("a", "live" if is_live else "loaded")]


@pytest.mark.parametrize(("end", "result"), ENDS)
def test_the_end_of_a_stuck_batch_is_recorded(world: World, end: End, result: str) -> None:
    batch = start(world, "pci:v2")
    world.hang("c")
    assert world.told() == [("c", "stuck")]
    world.pop_finished()
    world.live()
    end(world, "c")
    assert (batch.state, world.state.in_flight.batches) == ("done", {})
    assert world.told() == [("c", result)]
    assert world.state.quarantine.crashed == ({"c"} if result == "crashed" else set())
    assert world.pop_finished() == []
    world.advance()
    assert world.replays == ["all"]


def test_a_stuck_batch_whose_step_was_never_begun_is_tried_again(world: World) -> None:
    """Its loader did not run for StuckAfterSec=, by SIGSTOP or for lack of memory; then it was told to end."""
    batch = start(world)
    world.finish("a")
    world.pass_time(61)
    world.answer_stack()
    world.pass_time(0)
    assert (batch.state, batch.module) == ("stuck", "c")
    world.told()
    world.skip("c")
    assert (batch.state, world.told()) == ("done", [])
    world.advance()
    assert world.replays == ["all"]


def test_a_stalled_batch_whose_step_was_never_begun_is_done(world: World) -> None:
    """Another process has loaded the module meanwhile."""
    batch = start(world)
    world.finish("a")
    world.add_live("c")
    world.pass_time(61)
    world.answer_stack()
    world.pass_time(0)
    assert (batch.state, batch.module) == ("stalled", "c")
    world.told()
    world.skip("c")
    assert (batch.state, world.told()) == ("done", [])
    world.advance()
    assert world.replays == []


def test_the_end_of_a_stalled_batch_is_recorded_once(world: World) -> None:
    """It was recorded as loaded when it was given up."""
    batch = start(world, "pci:v2")
    world.hang("c", is_live=True)
    assert world.told() == [("c", "stuck"), ("c", "loaded")]
    world.finish("c")
    assert batch.state == "done"
    (record,) = world.records
    assert record.priority == INFO
    assert world.told() == [("c", "live")]
    assert world.state.reporter.counters.results == {"stuck": 1, "loaded": 1}
    world.advance()
    assert world.replays == []


def test_a_stalled_batch_that_fails_after_all_is_recorded(world: World) -> None:
    batch = start(world, "pci:v2")
    world.hang("c", is_live=True)
    world.told()
    world.live()
    world.finish("c", errno.EIO)
    assert batch.state == "done"
    assert world.told() == [("c", "failed")]
    world.advance()
    assert world.replays == ["all"]


# -- detached ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def detached(world: World) -> Batch:
    """The loader of a, c, b was given up at a and has gone on to c before it was told to end."""
    batch = start(world)
    world.hang("a")
    come_in(world, "a")
    assert (batch.state, batch.module) == ("detached", "c")
    world.told()
    world.pop_finished()
    return batch


def test_a_detached_batch_is_neither_awaited_nor_stuck(world: World, detached: Batch) -> None:
    """Until the loader says that it has not begun c, another job does not get c as stuck."""
    assert not detached.is_awaited
    assert world.state.stuck() == []
    world.plug("pci:v1", "other")
    world.advance()
    assert ("c", "stuck") not in world.told()
    world.skip("c")
    world.settle()
    assert world.calls == ["a", "c", "b"]


def test_a_detached_batch_stays_detached_at_a_reply(world: World, detached: Batch) -> None:
    come_in(world, "c")
    assert (detached.state, detached.module) == ("detached", "b")
    assert world.told() == [("c", "loaded")]
    assert world.pop_finished() == []


@pytest.mark.parametrize(("end", "result"), ENDS)
def test_the_end_of_a_detached_batch_is_recorded(world: World, detached: Batch, end: End, result: str) -> None:
    come_in(world, "c")
    world.told()
    end(world, "b")
    assert (detached.state, world.state.in_flight.batches) == ("done", {})
    assert world.told() == [("b", result)]
    assert world.pop_finished() == []


def test_a_detached_batch_that_does_not_begin_a_step_is_done_without_a_record(world: World, detached: Batch) -> None:
    world.skip("c")
    assert (detached.state, world.state.in_flight.batches) == ("done", {})
    assert world.told() == []
    assert world.pop_finished() == []
