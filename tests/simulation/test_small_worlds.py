"""Small worlds, explored exhaustively: three modules, two lanes, a nested request, one fault at any moment."""

from __future__ import annotations

import pytest

from tests.simulation.explore import LARGE_WORLD, SMALL_WORLDS, SmallWorld, explore
from tests.simulation.mutants import Mutant

DEADLOCK = Mutant("engine.scheduler:Scheduler.run", "state.in_flight.hangs_on(step.module, job)", "False")
"""An init that asks for its own module waits for itself."""


WORLDS = [*SMALL_WORLDS, pytest.param(LARGE_WORLD, marks=[pytest.mark.long, pytest.mark.timeout(3600)])]


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_no_order_of_events_violates_an_invariant(world: SmallWorld) -> None:
    found = explore(world)
    assert found.violations == {}
    print(f"{world.name}: {found.states} states, {found.transitions} transitions, depth {found.depth}")


def test_the_worlds_are_not_trivial() -> None:
    """The limit ends a search, so all states of a world were visited only without it."""
    found = explore(SMALL_WORLDS[0], limit=300)
    assert found.states >= 300
    assert found.depth >= 8
    assert found.ends > 5


@pytest.mark.parametrize("number", [1, 2])
def test_a_planted_deadlock_is_found(number: int) -> None:
    """In a world where an init asks for itself, or two ask for each other."""
    with DEADLOCK.applied():
        found = explore(SMALL_WORLDS[number], limit=400)
    assert "ring" in found.violations
