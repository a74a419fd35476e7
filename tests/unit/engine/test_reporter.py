"""Records that are held back are counted, in the journal and in the status."""

from __future__ import annotations

from kmodd.state.rate_limit import QUIET
from tests.world import World


def test_the_next_record_has_the_count(world: World) -> None:
    world.refuse["c"] = 19
    world.records.clear()
    for _ in range(5):
        world.ask("c")
        world.settle()
    assert world.state.reporter.records_held_back == 4
    assert world.state.reporter.counters.results["failed"] == 5
    world.pass_time(QUIET)
    world.ask("c")
    world.settle()
    first, second = world.records
    assert "KMODD_REPEATED" not in dict(first.fields)
    assert dict(second.fields)["KMODD_REPEATED"] == "4"
    assert second.message.endswith("; 4 more like this since the last record")
    assert world.state.reporter.records_held_back == 0
