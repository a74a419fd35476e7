"""Without a module tree requests wait; a tree that appears is used."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmodd.config.modprobe_d import Extensions
from kmodd.host.machine import HostMachine
from kmodd.index.catalog import Snapshot
from kmodd.planning.record import NO_TREE
from tests.world import World


def test_a_tree_missing_at_the_start_is_recorded_once_and_used_when_it_appears(tmp_path: Path) -> None:
    world = World(tmp_path, has_tree=False)
    world.plug("pci:v2")
    world.settle()
    world.advance()
    assert world.told() == [(NO_TREE[-4:], "")]
    assert world.state.system.no_tree
    (tmp_path / "hidden").rename(world.modules)
    world.settle()
    assert world.calls == ["c"]


@pytest.mark.parametrize("origin", ["operator", "uevent"])
def test_a_tree_that_disappears_while_it_is_read_loses_no_request(
    world: World, monkeypatch: pytest.MonkeyPatch, origin: str
) -> None:
    hidden, alias = world.root / "hidden", world.modules / "modules.alias"
    read = HostMachine.read_tree

    def disappear(machine: HostMachine, extensions: Extensions, notice_edits: bool, *, whole: bool = True) -> Snapshot:
        if world.modules.exists():
            world.modules.rename(hidden)
        return read(machine, extensions, notice_edits, whole=whole)

    if origin == "operator":
        world.order("nothing")
    else:
        world.plug("nothing")
    with monkeypatch.context() as patched:
        patched.setattr(HostMachine, "read_tree", disappear)
        alias.write_text(alias.read_text() + "alias x y\n")  # so that it is read again
        finished = world.settle()
    assert [job.plan.request.text for job in finished] == ["nothing"]
    world.plug("pci:v2")
    world.settle()
    assert world.state.system.no_tree
    assert world.replays == []
    hidden.rename(world.modules)
    world.plug("pci:v2", "another")
    world.settle()
    assert world.calls == ["c"]
    assert world.replays == ["all"], "the first device is asked again"


def test_an_index_emptied_by_a_power_cut_is_recorded_and_its_repair_used(tmp_path: Path) -> None:
    world = World(tmp_path, has_tree=False)
    (tmp_path / "hidden").rename(world.modules)
    whole = (world.modules / "modules.dep").read_bytes()
    (world.modules / "modules.dep").write_bytes(b"")
    world.plug("pci:v2")
    world.settle()
    assert world.calls == []
    assert world.state.system.no_tree.endswith("/modules.dep: empty; run depmod")
    assert world.told()[0] == (NO_TREE[-4:], "")
    (world.modules / "modules.dep").write_bytes(whole)
    world.reload()
    world.settle()
    assert world.calls == ["c"]
    assert not world.state.system.no_tree
