"""A module that the kernel requested is removed with its dependencies once nothing uses it."""

from __future__ import annotations

import pytest

from tests.world import World


@pytest.fixture
def stacked(world: World) -> World:
    """The kernel has requested b, which uses a; b is named in Autoclean=."""
    world.configure("[Kmodd]\nAutoclean=b\nAutocleanSec=1\n")
    world.reload()
    world.ask("b")
    world.settle()
    assert world.calls == ["a", "b"]
    (world.root / "proc/modules").write_text("a 1 1 b, Live 0x0\nb 1 0 - Live 0x0\n")
    world.calls.clear()
    world.told()
    return world


def wait(world: World) -> None:
    """Let two seconds pass, and end the removals; with b, the use of a ends."""
    world.pass_time(2)
    if "b" in world.loading:
        world.live("a", "b")
    world.settle()


def test_an_idle_module_is_removed_with_its_dependency(stacked: World) -> None:
    assert stacked.state.autoclean.deadline() == stacked.engine.deadline(stacked.now)
    wait(stacked)
    assert stacked.calls == ["b", "a"]
    assert stacked.told() == [("a", "removed"), ("b", "removed")]  # the dependency is a detail
    assert stacked.state.autoclean.deadline() is None


def test_a_used_module_is_not_removed(stacked: World) -> None:
    (stacked.root / "proc/modules").write_text("a 1 1 b, Live 0x0\nb 1 1 - Live 0x0\n")
    wait(stacked)
    assert stacked.calls == []
    assert stacked.state.autoclean.deadline() is not None


@pytest.mark.parametrize(("gone", "removed"), [("b", []), ("a", ["b"])])
def test_a_module_removed_and_loaded_by_another_process_stays(stacked: World, gone: str, removed: list[str]) -> None:
    """The kernel's uevents say so, though nothing is different at the next look."""
    for action in ("remove", "add"):
        stacked.module_event(action, gone)
    wait(stacked)
    assert stacked.calls == removed
