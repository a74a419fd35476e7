"""Module files that are not root's alone: for whom they are loaded, and what the record says."""

from __future__ import annotations

import pytest

from kmodd.planning.record import NOTICE, WARNING
from tests.world import World


@pytest.fixture
def foreign(world: World) -> str:
    """The file of `a`, which `b` needs, is a link to one that others may write. Why it is not root's."""
    target = world.root / "home/a.ko"
    target.parent.mkdir()
    (world.modules / "a.ko").rename(target)
    (world.modules / "a.ko").symlink_to(target)
    target.chmod(0o666)
    return f"is a link to {target}, which is writable by others"


def allow(world: World) -> None:
    (world.root / "etc/kmodd").mkdir()
    (world.root / "etc/kmodd/kmodd.conf").write_text("[Kmodd]\nForeignModules=yes\n")
    world.reload()


def test_a_device_does_not_get_what_needs_a_foreign_file_and_the_record_says_what_to_do(
    world: World, foreign: str
) -> None:
    world.plug("pci:v1")
    world.plug("pci:v2")
    world.settle()
    assert world.calls == ["c"]
    (record,) = [each for each in world.records if each.message.startswith("Denied a ")]
    assert record.priority == NOTICE
    assert f"ForeignModules=no: {world.tree.directory}/a.ko {foreign}; give root a copy" in record.message
    assert "and run `kmodd reload`, load it with modprobe, or set ForeignModules=yes in kmodd.conf" in record.message
    assert {("a", "denied"), ("b", "denied")} <= set(world.told())
    assert not [path for path in world.read_ahead if path.endswith("a.ko")]


@pytest.mark.usefixtures("foreign")
def test_a_request_of_the_kernel_does_not_get_it_either(world: World) -> None:
    world.ask("b")
    world.settle()
    assert world.calls == []
    assert ("b", "denied") in world.told()


def test_with_the_setting_a_device_gets_it_with_a_warning(world: World, foreign: str) -> None:
    allow(world)
    world.plug("pci:v1")
    world.settle()
    assert world.calls == ["a", "b"]
    records = {record.message.split(" ")[1]: record for record in world.records if record.message.startswith("Loaded")}
    assert records["b"].priority == WARNING
    assert records["b"].message.endswith(f", with a; a's file {foreign}")


@pytest.mark.usefixtures("foreign")
def test_a_link_to_what_is_roots_is_loaded_for_a_device_as_a_dependency_too(world: World) -> None:
    (world.root / "home/a.ko").chmod(0o644)
    world.plug("pci:v1")
    world.settle()
    assert world.calls == ["a", "b"]
    assert not [record for record in world.records if record.priority <= WARNING]
    assert {("a", "loaded"), ("b", "loaded")} <= set(world.told())


@pytest.mark.usefixtures("foreign")
def test_a_file_that_becomes_roots_is_loaded_for_the_next_device(world: World) -> None:
    world.plug("pci:v1")
    world.settle()
    (world.root / "home/a.ko").chmod(0o644)
    world.plug("pci:v1", "0000:02:00.0")
    world.settle()
    assert world.calls == ["a", "b"]


@pytest.mark.usefixtures("foreign")
def test_a_link_whose_target_is_gone_is_a_missing_file(world: World) -> None:
    """As after a removed build, where depmod did not run since."""
    (world.root / "home/a.ko").unlink()
    world.ask("a")
    world.advance()
    world.finish("a", 2, stage="file")
    world.settle()
    assert ("a", "missing") in world.told()


@pytest.mark.usefixtures("foreign")
@pytest.mark.parametrize("cause", ["setting", "reload"])
def test_a_device_that_is_there_gets_it_when_the_reason_is_gone(world: World, cause: str) -> None:
    """By the setting, or by `kmodd reload` after the file has become root's; with neither, the answer stands."""
    world.plug("pci:v1")
    world.settle()
    world.plug("pci:v1", synthetic=True)
    world.settle()
    assert world.calls == []
    if cause == "setting":
        allow(world)
    else:
        (world.root / "home/a.ko").chmod(0o644)
        world.plug("pci:v1", synthetic=True)
        world.settle()
        assert world.calls == []
        world.reload()
    assert world.replays[-1:] == ["all"] or world.state.queue.replay_is_due
    world.plug("pci:v1", synthetic=True)
    world.settle()
    assert world.calls == ["a", "b"]
