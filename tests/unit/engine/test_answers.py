"""Callers always get an answer, and a loop without work sleeps."""

from __future__ import annotations

import errno

import pytest

from kmodd.engine.events import Advance, Finish, KernelLogged, LoaderReplied, Log
from kmodd.engine.loader_supply import RETRY_AFTER
from kmodd.kernel.kmsg import KernelLine
from kmodd.planning.reply import Reply
from kmodd.planning.request import Origin
from tests.world import World, results


@pytest.mark.parametrize("origin", ["request", "operator"])
def test_a_caller_gets_an_answer_where_devices_have_it_from_the_cache(world: World, origin: Origin) -> None:
    """A refusal stands for ten seconds for devices; a process in request_module() would hang for ever."""
    world.refuse["c"] = errno.ENODEV
    world.boot_list("c")
    world.settle()
    for _ in range(2):
        world.queue(world.request("c", origin))
        assert results(world.settle()) == [("c", "failed")]


def test_a_caller_is_answered_once_the_records_are_written(world: World) -> None:
    """A caller that reads the journal next finds what its request has loaded."""
    world.order("c")
    world.advance()
    answered = world.handle(LoaderReplied(world.batch("c").number, Reply(0, "kernel", 7)))
    assert [type(command) for command in answered] == [Log, Finish]
    world.add_live("c")
    world.order("c")
    at_once = world.handle(Advance())
    assert [type(command) for command in at_once] == [Log, Finish]


def test_a_refusal_of_a_kernels_request_does_not_count_for_a_device(world: World) -> None:
    """Policy may refuse the one and allow the other; both ask for the alias of an MDIO device."""
    world.set_rules("deny origin=request")
    world.ask("pci:v2")
    assert results(world.settle()) == [("c", "denied")]
    world.plug("pci:v2", synthetic=True)
    world.settle()
    assert world.calls == ["c"]


def test_without_a_loader_and_without_a_request_nothing_is_due(world: World) -> None:
    """A deadline that has passed and is never met would make the daemon's loop spin."""
    world.no_loader = "no loader: connection refused"
    world.order("c")
    world.advance()
    assert results(world.pop_finished()) == [("c", "not_attempted")]
    deadline = world.engine.deadline(world.now)
    assert deadline is not None
    assert deadline == world.now + RETRY_AFTER
    world.pass_time(RETRY_AFTER)
    assert not world.engine.can_advance(world.now)
    later = world.engine.deadline(world.now)
    assert later is None or later > world.now


def test_steps_that_are_not_tried_take_no_time(world: World) -> None:
    world.write_modules({"a": "Loading"})
    world.pass_time(2)
    world.plug("pci:v1", "other")
    world.advance()
    world.pass_time(world.state.system.settings.stuck_after + 1)
    world.records.clear()
    world.write_modules({"a": "Loading", "c": "Loading"})
    world.state.quarantine.crash("c")
    world.pass_time(2)
    world.plug("pci:v1", "another")
    world.plug("pci:v2")
    world.settle()
    messages = [record.message for record in world.records]
    crashed = "Crashed: c for 0000:01:00.0 before, and is not tried again"
    assert any(message.startswith(crashed) for message in messages), messages
    stuck = "Stuck: a for another is starting since before this request (dependency of b)"
    assert any(message.startswith(stuck) for message in messages), messages


def test_a_longer_limit_does_not_make_the_loop_spin(world: World) -> None:
    """StuckAfterSec= is raised while the stack of a loader is asked for."""
    world.plug("pci:v2")
    world.advance()
    world.pass_time(61)
    assert world.stacks
    world.configure("[Kmodd]\nStuckAfterSec=600\n")
    world.reload()
    world.pass_time(5)
    deadline = world.engine.deadline(world.now)
    assert deadline is not None
    assert deadline > world.now + 5


def test_devices_are_not_settled_while_one_is_probed_again(world: World) -> None:
    """A device that is probed again may bring others, once its firmware lets it work."""
    (world.root / "lib/firmware").mkdir()
    (world.root / "lib/firmware/x.fw").touch()
    text = "nic 0000:02:00.0: Direct firmware load for x.fw failed with error -2"
    world.handle(KernelLogged((KernelLine(4, 1, 1, text, "pci", "+pci:0000:02:00.0"),)))
    (probe,) = world.probes
    settled = [world.engine.devices_settled]
    world.handle(LoaderReplied(probe.batch, Reply(0, "kernel", 1)))
    assert [*settled, world.engine.devices_settled] == [False, True]


def test_a_replay_is_due_also_without_a_loader(world: World) -> None:
    world.no_loader = "no loader: connection refused"
    world.plug("pci:v2")
    world.advance()
    world.lose_uevents()
    assert world.engine.can_advance(world.now)
    world.advance()
    assert world.replays == ["all"]
    assert not world.engine.can_advance(world.now)
