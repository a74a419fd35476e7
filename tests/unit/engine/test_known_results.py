"""What is answered from memory, and what makes it be tried again."""

from __future__ import annotations

import errno

import pytest

from kmodd.planning.reply import Stage
from tests.world import World


def test_a_refusal_is_repeated_for_a_real_device_and_not_for_a_trigger(world: World) -> None:
    """ENODEV is not retried by itself: synthetic uevents are repeats, a device that comes later is a cause."""
    world.refuse["c"] = errno.ENODEV
    world.plug("pci:v2")
    world.settle()
    for _ in range(100):
        world.plug("pci:v2", synthetic=True)
        world.settle()
    assert world.calls == ["c"]
    assert world.state.reporter.counters.repeats == 100
    world.pass_time(10.1)
    world.plug("pci:v2", "0000:03:00.0")
    world.settle()
    assert world.calls == ["c", "c"]


def test_a_module_that_refuses_for_each_of_1536_processors_is_one_try_one_record_and_a_count(world: World) -> None:
    world.refuse["c"] = errno.ENODEV
    for number in range(1536):
        world.plug("pci:v2", f"cpu{number}")
        world.settle()
    assert world.calls == ["c"]
    assert world.told() == [("c", "failed")]
    assert world.state.reporter.counters.repeats == 1535


def test_a_module_that_refused_is_not_tried_for_another_alias_of_the_replay(world: World) -> None:
    """Three aliases of one processor name acpi_cpufreq: one try, and the records of the others say why not."""
    world.index(deps=["c.ko:"], aliases=["alias cpu:x* c", "alias acpi:y* c"])
    world.refuse["c"] = errno.ENODEV
    world.plug("cpu:x1", synthetic=True)
    world.plug("acpi:y1", synthetic=True)
    world.settle()
    assert world.calls == ["c"]
    assert "it has refused with ENODEV" in world.records[-1].message


def test_a_removed_module_is_loaded_again_on_trigger(world: World) -> None:
    world.plug("pci:v2")
    world.settle()
    world.live()
    world.module_event("remove", "c")
    world.plug("pci:v2", synthetic=True)
    world.settle()
    assert world.calls == ["c", "c"]


def test_no_match_is_recorded_once_until_the_index_changes(world: World) -> None:
    world.plug("pci:v9")
    world.plug("pci:v9", "other")
    world.settle()
    world.plug("pci:v9")
    world.settle()
    assert world.told() == [("f10a", "nomatch")]
    world.index(deps=["c.ko:"], aliases=["alias pci:v2* c"])
    world.plug("pci:v9")
    world.settle()
    assert ("f10a", "nomatch") in world.told()


@pytest.mark.parametrize("stage", ["kernel", "command"])
def test_a_module_that_failed_and_is_loaded_after_all_lets_devices_have_what_needs_it(
    world: World, stage: Stage
) -> None:
    """By an operator, say; without that, its devices would wait for the next search for drift."""
    if stage == "command":
        (world.root / "etc/modprobe.d/x.conf").write_text("install a /bin/load\n")
        world.reload()
    world.plug("pci:v2", "other")
    world.plug("pci:v1")
    world.advance()
    world.finish("c", errno.EIO)
    world.finish("a", errno.EIO, stage=stage)
    world.settle()
    world.module_event("remove", "x")
    world.forget()
    world.module_event("add", "c")  # a control: nothing needs it
    world.advance()
    assert world.replays == []
    world.add_live("a")
    world.module_event("add", "a")
    world.advance()
    assert world.replays == ["all"]
    world.replay_device("pci:v1", "0000:01:00.0")
    world.settle()
    assert world.calls == ["c", "a", "b"]
