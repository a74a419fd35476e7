"""What is counted for `kmodd status` and `kmodd metrics`, within limits."""

from __future__ import annotations

from kmodd.errors import Where
from kmodd.planning.outcome import Outcome, Result
from kmodd.planning.plan import Reason
from kmodd.planning.request import Request
from kmodd.state.tally import BOUNDS_USEC, MAX_RULES, OTHER, Tally


def outcome(result: Result, usec: int = 0, at: Where | None = None, rule: str = "") -> Outcome:
    because = Reason("asked", "x")
    return Outcome(Request("x", "uevent"), "x", result, because, duration_usec=usec, at=at, rule=rule)


def test_loads_are_counted_by_duration() -> None:
    tally = Tally()
    tally.add([outcome("loaded", usec) for usec in (1, BOUNDS_USEC[0], BOUNDS_USEC[0] + 1, 10**9)], 1.0)
    assert (tally.inits[0], tally.inits[1], tally.inits[-1], sum(tally.inits)) == (2, 1, 1, 4)
    assert tally.init_usec == 1 + 1000 + 1001 + 10**9
    assert tally.results == {("uevent", "loaded"): 4}
    assert tally.last_failure is None


def test_the_last_failure_and_the_last_refusal_are_kept() -> None:
    tally = Tally()
    tally.add([outcome("failed"), outcome("denied", rule="a seal")], 1.0)
    tally.add([outcome("crashed")], 2.0)
    assert tally.last_failure is not None
    assert (tally.last_failure.outcome.result, tally.last_failure.at) == ("crashed", 2.0)
    assert tally.last_refusal is not None
    assert tally.last_refusal.at == 1.0
    assert tally.refusals == {"a seal": 1}


def test_refusals_of_many_rules_are_bounded() -> None:
    tally = Tally()
    for line in range(1, 2 * MAX_RULES):
        tally.add([outcome("denied", at=Where("/x.conf", line))] * 2, 1.0)
    assert len(tally.refusals) == MAX_RULES + 1
    assert tally.refusals["/x.conf:1"] == 2
    assert tally.refusals[OTHER] == 2 * (MAX_RULES - 1)
