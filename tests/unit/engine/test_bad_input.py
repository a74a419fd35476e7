"""A line that cannot be used is recorded with its place, and the rest counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmodd.planning.plan import Insmod
from kmodd.planning.record import BAD_INPUT
from tests.world import World


def warnings(world: World) -> list[str]:
    return [record.message for record in world.records if record.message_id == BAD_INPUT]


@pytest.mark.parametrize(
    ("aliases", "expected"),
    [
        (["alias pci:v2* c", "alias pci:v9*"], "modules.alias:2"),
        (["alias pci:v2* c", "alias pci:v[9* a"], "modules.alias:2"),
        (["alias pci:v2* c", "nonsense"], "modules.alias:2"),
    ],
)
def test_a_bad_line_of_the_index_is_named_and_the_rest_counts(world: World, aliases: list[str], expected: str) -> None:
    world.index(deps=["a.ko:", "c.ko:"], aliases=aliases)
    world.plug("pci:v2")
    world.settle()
    assert world.calls == ["c"]
    assert any(expected in message for message in warnings(world)), warnings(world)


def test_a_truncated_index_serves_what_it_has(world: World) -> None:
    path = world.modules / "modules.alias"
    path.write_bytes(b"alias pci:v2* c\nalias pci:v1*")
    world.plug("pci:v2")
    world.plug("pci:v1")
    world.settle()
    assert world.calls == ["c"]
    assert any("modules.alias:2" in message for message in warnings(world))


def test_a_bad_line_of_the_configuration_is_named(world: World) -> None:
    (world.root / "etc/modprobe.d/x.conf").write_text("blacklist\noptions c x=1\n")
    world.plug("pci:v2")
    world.advance()
    (step,) = world.batch("c").steps
    assert isinstance(step, Insmod)
    assert step.options == "x=1 "  # with the blank that kmod puts before an operator's own
    assert any("/etc/modprobe.d/x.conf:1" in message for message in warnings(world))


def test_a_modalias_of_two_thousand_characters_with_shell_in_it_stays_a_modalias(world: World, tmp_path: Path) -> None:
    """No shell-like parser stands on its way (systemd issue 24715)."""
    proof = tmp_path / "proof"
    odd = "pci:v2" + f"'\"`touch {proof}`$(touch {proof});" + "x" * 2000
    world.plug(odd)
    world.settle()
    assert world.calls == ["c"]
    assert not proof.exists()
    assert dict(world.records[-1].fields)["KMODD_ALIAS"] == odd


def test_a_modalias_with_an_open_bracket_matches_nothing(world: World) -> None:
    world.plug("pci:v2[")
    world.plug("pci:v2", "fine")
    world.settle()
    assert world.calls == ["c"]
