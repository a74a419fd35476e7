"""The simulator is true: each scenario gives the same loads and records on a simulated machine and in a VM.

One guest for all of them: kmodd is stopped, devices, modules and configuration are removed after each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.simulation.scenarios import SCENARIOS, Scenario, differences
from tests.simulation.scripted import simulate
from tests.vm.image import Image
from tests.vm.machine import Machine
from tests.vm.payload import Payload
from tests.vm.scripted import GuestPlayer, prepare_scenarios

# Long until each scenario has been seen in a guest.
pytestmark = [pytest.mark.vm, pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def guest(image: Image, boot: Callable[..., AbstractContextManager[Machine]]) -> Iterator[Machine]:
    def prepare(payload: Payload) -> None:
        prepare_scenarios(payload, image)

    with boot("the guest of scenarios", prepare=prepare, append="no_timer_check") as machine:
        yield machine


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name.replace(" ", "-"))
def test_a_scenario_is_the_same_in_the_simulator_and_in_a_guest(guest: Machine, scenario: Scenario) -> None:
    release = guest.image.release
    if not scenario.runs_on(release):
        pytest.skip(f"not on {release}")
    simulated = simulate(scenario, release)
    found = differences(scenario, simulated, GuestPlayer(guest).play(scenario, simulated))
    print(f"\n{scenario.name}: {'; '.join(found) or 'the same'}")
    assert found == []
