"""Scenarios bring on a simulated machine what they say; tests/vm/test_simulator_is_true.py plays them on a real one."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest

from tests.simulation.scenarios import SCENARIOS, Scenario, Seen, differences
from tests.simulation.scripted import simulate

RELEASES = ("6.1.0-56-amd64", "6.12.117+deb13-amd64")

CONTROL = Scenario(
    "control",
    """
start
plug kt_chain_a
plug kt_plain
  loads kt_chain_a > kt_chain_b, kt_plain
  kt_chain_b loaded request > kt_chain_a loaded uevent, kt_plain loaded uevent
plug kt_refuse
  loads kt_refuse
  kt_refuse failed uevent ENODEV
""",
)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name.replace(" ", "-"))
def test_a_scenario_brings_what_it_says(scenario: Scenario, release: str) -> None:
    if scenario.runs_on(release):
        assert (
            differences(scenario, [stage.expected() for stage in scenario.stages()], simulate(scenario, release)) == []
        )


def test_there_are_scenarios_of_each_kind() -> None:
    """At least twenty, with oopses, hanging inits and nested requests; each kernel's result of a second load."""
    assert len(SCENARIOS) >= 20
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)
    texts = [scenario.text for scenario in SCENARIOS]
    for word in ("crashed", "stuck", "request >", "denied", "blocked", "overflow", "kill-daemon", "EEXIST", "EBUSY"):
        assert any(word in text for text in texts), word


def expected() -> list[Seen]:
    return [stage.expected() for stage in CONTROL.stages()]


def wrong_result(seen: list[Seen]) -> None:
    seen[1].records[0] = "kt_refuse failed uevent EIO"


def lost_record(seen: list[Seen]) -> None:
    seen[0].records.pop()


def second_record(seen: list[Seen]) -> None:
    seen[0].records.append("kt_plain loaded uevent")


def swapped_records(seen: list[Seen]) -> None:
    seen[0].records[:2] = reversed(seen[0].records[:2])


def swapped_loads(seen: list[Seen]) -> None:
    seen[0].loads[:2] = reversed(seen[0].loads[:2])


def lost_load(seen: list[Seen]) -> None:
    seen[1].loads.clear()


def second_load(seen: list[Seen]) -> None:
    seen[0].loads.append("kt_plain")


def late_record(seen: list[Seen]) -> None:
    seen[1].records.append(seen[0].records.pop())


def lost_stage(seen: list[Seen]) -> None:
    seen.pop()


FAULTS = (
    wrong_result, lost_record, second_record, swapped_records, swapped_loads, lost_load, second_load, late_record,
    lost_stage,
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_difference_is_seen(fault: Callable[[list[Seen]], None]) -> None:
    """Whichever of the two machines shows it."""
    seen = deepcopy(expected())
    fault(seen)
    assert differences(CONTROL, expected(), seen) != []
    assert differences(CONTROL, seen, expected()) != []


def test_an_order_that_a_scenario_leaves_open_is_no_difference() -> None:
    seen = deepcopy(expected())
    seen[0].loads = ["kt_plain", "kt_chain_a", "kt_chain_b"]
    seen[0].records = [seen[0].records[2], *seen[0].records[:2]]
    assert differences(CONTROL, expected(), seen) == []


def test_a_wrong_expectation_is_seen() -> None:
    """A scenario that expects something else than it brings differs from the simulator."""
    wrong = Scenario("wrong", "start\nplug kt_plain\n  loads kt_plain\n  kt_plain live uevent\n")
    assert differences(wrong, [stage.expected() for stage in wrong.stages()], simulate(wrong, RELEASES[0])) != []
