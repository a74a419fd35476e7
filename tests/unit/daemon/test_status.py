"""The answer to `Status`: what is wrong with the configuration."""

from __future__ import annotations

from pathlib import Path

from kmodd.daemon.status import StatusReport
from tests.world import World


def problems(world: World) -> list[str]:
    found = StatusReport(world.tree, world.engine, dry_run=False, since=0.0).reply((), (), 0, world.now)["problems"]
    assert isinstance(found, list)
    return found


def test_a_mistake_in_the_rules_is_shown_until_it_is_corrected(world: World) -> None:
    world.set_rules("deny module=a")
    assert problems(world) == []
    world.set_rules("deny modul=a")
    (problem,) = problems(world)
    assert problem.startswith("/etc/kmodd/policy.d/x.conf:1:6: unknown condition 'modul'")
    assert problem.endswith("; until this is corrected, the earlier rules apply, and all valid deny rules")
    world.set_rules("deny module=b")
    assert problems(world) == []


def test_a_mistake_at_the_start_says_what_is_allowed(tmp_path: Path) -> None:
    rules = tmp_path / "etc/kmodd/policy.d/x.conf"
    rules.parent.mkdir(parents=True)
    rules.write_text("deny modul=a\n")
    world = World(tmp_path)
    assert problems(world) == []  # the policy is off
    world.configure("[Kmodd]\nPolicy=enforce\n")
    world.reload()
    (problem,) = problems(world)
    assert "only requests known as root's are allowed" in problem


def test_a_broken_kmodd_conf_is_shown(world: World) -> None:
    world.configure("[Kmodd]\nLanes=many\n")
    world.reload()
    (problem,) = problems(world)
    assert problem.startswith("/etc/kmodd/kmodd.conf:2:7: ")
    assert problem.endswith("; until this is corrected, all earlier settings apply")
