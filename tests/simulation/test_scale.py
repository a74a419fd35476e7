"""The engine's steps grow at most in proportion to devices, processors, modules, lanes and events."""

from __future__ import annotations

import pytest

from tests.simulation.mutants import Mutant
from tests.simulation.scale import WORKLOADS, Workload, exponent, steps

ROOM = 1.1
"""What twice the size may take more than twice the steps."""

QUADRATIC = Mutant(
    "state.queue:DeviceQueue.take", "if not queue:", "for _ in range(30 * len(queue)):\n        pass\n    if not queue:"
)  # fmt: skip
"""Goes through the whole queue for each device."""


def growth(workload: Workload) -> float:
    """The steps of twice the small size, in those of the small size."""
    return steps(workload, 2 * workload.small) / steps(workload, workload.small)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_steps_grow_at_most_in_proportion(workload: Workload) -> None:
    assert growth(workload) <= 2 * ROOM


def test_a_planted_quadratic_is_seen() -> None:
    """The negative control."""
    devices = WORKLOADS[0]
    with QUADRATIC.applied():
        assert growth(devices) > 2 * ROOM


def test_steps_are_the_same_each_time() -> None:
    """They are counted, not timed."""
    assert len({steps(WORKLOADS[1], 50) for _ in range(2)}) == 1


def test_the_exponent_of_a_power() -> None:
    assert exponent([1, 10, 100], [3, 300, 30_000]) == pytest.approx(2.0)
    assert exponent([2, 4, 8, 16], [5, 5, 5, 5]) == pytest.approx(0.0)
