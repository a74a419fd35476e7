"""A plan under way: order, effect of a failure, steps that are done already."""

from __future__ import annotations

from kmodd.names import ModuleName
from kmodd.planning.job import Job
from kmodd.planning.outcome import Outcome, Result
from kmodd.planning.plan import Goal, Insmod, Plan, Reason, Skip, Step
from kmodd.planning.request import Request

ASKED = Reason("asked", "a")


def insmod(name: str, *, required: bool = True) -> Insmod:
    return Insmod(ModuleName(name), f"/lib/modules/x/{name}.ko", "", ASKED, required)


def plan(*goals: Goal) -> Plan:
    return Plan(Request("a", "uevent"), goals)


def goal(*entries: Insmod | Skip) -> Goal:
    return Goal(ModuleName(entries[-1].module), entries)


def run(job: Job, failing: dict[str, Result], live: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    def known(step: Step) -> Outcome | None:
        return Outcome(job.plan.request, step.module, "live", step.because) if step.module in live else None

    while step := job.next_step(known):
        job.finish(Outcome(job.plan.request, step.module, failing.get(step.module, "loaded"), step.because))
    return [(outcome.module, outcome.result) for outcome in job.outcomes]


def test_steps_are_done_in_order() -> None:
    assert run(Job(plan(goal(insmod("b"), insmod("a")))), {}) == [("b", "loaded"), ("a", "loaded")]


def test_a_failed_dependency_stops_its_goal_and_not_the_next() -> None:
    """All hits of a look-up are acted on (kmod: the loop over the list of kmod_module_new_from_lookup)."""
    job = Job(plan(goal(insmod("c"), insmod("b"), insmod("a")), goal(insmod("z"))))
    assert run(job, {"c": "failed"}) == [
        ("c", "failed"), ("b", "not_attempted"), ("a", "not_attempted"), ("z", "loaded"),
    ]  # fmt: skip
    assert job.outcomes[1].detail == "c failed"


def test_a_failed_softdep_stops_nothing() -> None:
    """kmod_module_probe_insert_module: an error of a module that is not required is ignored."""
    job = Job(plan(goal(insmod("s", required=False), insmod("a"))))
    assert run(job, {"s": "failed"}) == [("s", "failed"), ("a", "loaded")]


def test_a_live_dependency_does_not_stop() -> None:
    assert run(Job(plan(goal(insmod("b"), insmod("a")))), {"b": "live"}) == [("b", "live"), ("a", "loaded")]


def test_a_module_loaded_meanwhile_is_not_inserted_again() -> None:
    assert run(Job(plan(goal(insmod("b"), insmod("a")))), {}, live=("b",)) == [("b", "live"), ("a", "loaded")]


def test_skips_are_outcomes_in_their_place() -> None:
    skip = Skip("b", "builtin", ASKED)
    assert run(Job(plan(goal(skip, insmod("a")))), {}) == [("b", "builtin"), ("a", "loaded")]


def test_a_dependency_without_a_file_stops_its_goal() -> None:
    skip = Skip("b", "missing", ASKED)
    assert run(Job(plan(goal(skip, insmod("a")))), {}) == [("b", "missing"), ("a", "not_attempted")]


def test_no_goal_is_a_nomatch() -> None:
    assert run(Job(plan()), {}) == [("a", "nomatch")]


def test_each_abandoned_step_is_an_outcome() -> None:
    job = Job(plan(goal(insmod("b"), insmod("a"))))
    job.abandon("dry run")
    assert [(o.module, o.result, o.detail) for o in job.outcomes] == [
        ("b", "not_attempted", "dry run"), ("a", "not_attempted", "dry run"),
    ]  # fmt: skip


def test_each_outcome_is_recorded_once() -> None:
    job = Job(plan(goal(insmod("b"), insmod("a"))))
    step = job.next_step(lambda _: None)
    assert step is not None
    job.finish(Outcome(job.plan.request, step.module, "loaded", step.because))
    assert [o.module for o in job.pop_outcomes()] == ["b"]
    assert job.pop_outcomes() == []
