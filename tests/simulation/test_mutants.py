"""Each mutant of the scheduler's rules is seen by an invariant; the same seeds are clean without it (test_boots.py)."""

from __future__ import annotations

import pytest

from tests.simulation.draw import SCRIPTS, play_boot, play_lines, read_script
from tests.simulation.explore import SMALL_WORLDS, explore
from tests.simulation.mutants import MUTANTS, Mutant

SEEDS = range(1, 151)
"""The seeds that a mutant must not survive."""


def is_seen(mutant: Mutant) -> bool:
    """Whether a script, a boot, or a small world violates an invariant. A boot ends after a bounded number of steps."""
    with mutant.applied():
        if any(play_lines(read_script(path))[0].kind for path in SCRIPTS):
            return True
        if any(play_boot(seed)[0].kind for seed in SEEDS):
            return True
        return any(explore(world, limit=400).violations for world in SMALL_WORLDS[:3])


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_seen(mutant: Mutant) -> None:
    assert is_seen(mutant)


def test_without_a_mutant_the_same_seeds_are_clean() -> None:
    """Or a mutant might be seen by a fault of the engine itself. The scripts: test_boots.py."""
    assert [seed for seed in SEEDS if play_boot(seed)[0].kind] == []


def test_there_are_thirty_mutants() -> None:
    assert len({(mutant.target, mutant.old) for mutant in MUTANTS}) >= 30


def test_a_mutant_ends_with_its_block() -> None:
    """A text that is not there is an error, so that a mutant does not survive by a change of the source."""
    with MUTANTS[0].applied():
        assert play_boot(SEEDS[0])[0].kind
    assert not play_boot(SEEDS[0])[0].kind
    with pytest.raises(ValueError, match="expected once"), Mutant(MUTANTS[0].target, "no such text", "").applied():
        pass
