"""Missing trees and loaders, and results that no longer hold, lose no request."""

from __future__ import annotations

import errno

import pytest

from kmodd.engine.loader_supply import RETRY_AFTER
from kmodd.planning.record import NO_LOADER, NO_TREE, RELOADED
from kmodd.state.queue import DeviceQueue
from tests.world import World, results


def test_a_missing_tree_is_recorded_once(world: World) -> None:
    world.modules.rename(world.root / "hidden")
    for number in range(3):
        world.plug("pci:v9", f"device{number}")
        world.settle()
    told = world.ids()
    assert told.count(NO_TREE) == 1
    assert RELOADED not in told


def test_a_reload_without_a_change_records_no_nomatch_again(world: World) -> None:
    """A no-match is recorded once per alias until the index changes."""
    world.plug("pci:v9")
    world.settle()
    world.reload()
    world.plug("pci:v9")
    world.settle()
    assert [result for _, result in world.told()].count("nomatch") == 1


# -- the boot list ----------------------------------------------------------------------------------------------------


def test_new_entries_of_the_boot_list_are_loaded(world: World) -> None:
    world.boot_list("a")
    world.settle()
    world.boot_list("a", "c")
    world.settle()
    assert world.calls == ["a", "c"]


def test_an_entry_that_joins_a_device_is_answered_with_it(world: World) -> None:
    """It had no loader, is queued again and finds the same request of a device; READY waits for the list."""
    world.no_loader = "no loader: connection refused"
    world.boot_list("c")
    world.advance()
    world.plug("c")
    assert world.state.queue.boot_left
    world.no_loader = ""
    world.pass_time(RETRY_AFTER)
    world.settle()
    assert world.calls == ["c"]
    assert not world.state.queue.boot_left


def test_the_boot_list_always_has_room_and_is_answered_from_the_cache(world: World) -> None:
    """No replay would bring it again, and READY waits for it."""
    world.refuse["c"] = errno.ENODEV
    world.plug("c")
    world.settle()
    world.state.queue.devices = DeviceQueue(limit=0)
    world.boot_list("c", "a")
    world.settle()
    assert world.calls == ["c", "a"]
    assert not world.state.queue.boot_left


# -- loaders ----------------------------------------------------------------------------------------------------------


def test_requests_wait_while_there_is_no_loader(world: World) -> None:
    world.no_loader = "no loader: connection refused"
    world.plug("pci:v2")
    world.plug("pci:v1", "other")
    world.advance()
    world.advance()
    assert world.ids() == [NO_LOADER]
    assert len(world.state.queue) == 2
    assert not world.engine.can_advance(world.now)
    assert not world.engine.is_idle
    world.no_loader = ""
    world.pass_time(RETRY_AFTER)
    world.settle()
    assert world.calls == ["c", "a", "b"]


def test_a_loader_that_dies_in_a_module_fails_it(world: World) -> None:
    """It was killed: the kernel does not have the module."""
    world.plug("pci:v2")
    world.advance()
    world.die("c")
    assert world.told() == [("c", "failed")]


def test_a_batch_that_was_never_read_goes_to_the_next_loader(world: World) -> None:
    """unix(7): ECONNRESET is the peer's end with data unread, so the module was not begun."""
    world.plug("pci:v2")
    world.advance()
    world.die("c", begun=False)
    world.settle()
    assert world.told() == [("c", "loaded")]


def test_a_crashed_module_is_not_given_to_the_kernel_again(world: World) -> None:
    """Its name stays `coming`, and a second load blocks for ever."""
    world.oops.add("c")
    world.plug("pci:v2")
    world.settle()
    world.plug("pci:v2", "another")
    world.settle()
    assert world.calls == ["c"]
    assert world.records[1].message.startswith("Crashed: c for another before, and is not tried again")


# -- results that no longer hold --------------------------------------------------------------------------------------


def test_a_refusal_by_an_operators_parameter_does_not_count_for_devices(world: World) -> None:
    world.refuse["c"] = errno.EINVAL
    world.order("c", "bogus=x")
    world.settle()
    world.refuse.clear()
    world.plug("pci:v2", synthetic=True)
    world.settle()
    assert world.told()[-1] == ("c", "loaded")


def test_a_failed_install_command_is_tried_again(world: World) -> None:
    (world.root / "etc/modprobe.d/x.conf").write_text("install c test -e /ready\n")
    world.plug("pci:v2", synthetic=True)
    world.advance()
    world.finish("c", 1, stage="command")
    assert ("c", "failed") in world.told()
    world.plug("pci:v2", synthetic=True)
    world.advance()
    world.finish("c", stage="command")
    assert world.told() == [("c", "loaded")]


@pytest.mark.parametrize(("words", "result"), [("", "loaded"), ("InstallSignalIsFailure=yes", "failed")])
def test_an_install_command_killed_by_a_signal(world: World, words: str, result: str) -> None:
    """kmod takes that for success; kmodd.conf may say otherwise."""
    world.configure(f"[Kmodd]\n{words}\n")
    (world.root / "etc/modprobe.d/x.conf").write_text("install c kill -TERM $$\n")
    world.reload()
    world.plug("pci:v2")
    world.advance()
    world.finish("c", 15, stage="signal")
    assert results(world.pop_finished()) == [("c", result)]
