"""Replays do not load what an administrator removed or overrode; devices without a driver are drift and get one."""

from __future__ import annotations

import errno
import os

import pytest

from kmodd.engine.events import Advance, DevicesFound
from kmodd.host import coldplug
from kmodd.kernel.uevent import Uevent
from kmodd.planning.record import DRIFT
from tests.world import World


def add_device(world: World, alias: str, *, driver: str = "", override: str = "") -> None:
    """The sysfs of this world has the device /devices/dev0."""
    folder = world.root / "sys/devices/dev0"
    folder.mkdir(parents=True)
    (folder / "modalias").write_text(f"{alias}\n")
    (folder / "driver_override").write_text(f"{override or '(null)'}\n")
    devices = world.root / "sys/bus/pci/devices"
    devices.mkdir(parents=True)
    (devices / "dev0").symlink_to("../../../devices/dev0")
    if driver:
        (folder / "driver").symlink_to(f"../../bus/pci/drivers/{driver}")


def find_drift(world: World) -> None:
    """sysfs is read for devices without a driver."""
    world.handle(DevicesFound(tuple(coldplug.replay(str(world.root), unbound=True)), "drift"))


def triggered_uevent(world: World, uuid: str) -> None:
    """dev0 tells its alias because the writer of this UUID asked it to."""
    world.uevent(f"add@/devices/dev0\0SUBSYSTEM=mmc\0MODALIAS=pci:v2\0SYNTH_UUID={uuid}\0".encode())


def plug_and_remove(world: World) -> None:
    """c is loaded for dev0, and an operator removes it."""
    world.plug("pci:v2", "dev0")
    world.settle()
    world.live()
    world.module_event("remove", "c")


def test_a_device_without_a_driver_is_recorded_as_drift_and_gets_its_module(world: World) -> None:
    add_device(world, "pci:v2")
    find_drift(world)
    world.settle()
    assert world.calls == ["c"]
    drift = next(record for record in world.records if record.message_id == DRIFT)
    assert "/devices/dev0 has no driver although pci:v2 matches c" in drift.message


def test_drift_that_is_planned_again_is_recorded_once(world: World) -> None:
    """Another device's module is in its init, so it is planned ahead; meanwhile a module is removed."""
    world.plug("pci:v1", "other")
    world.advance()
    add_device(world, "pci:v2")
    find_drift(world)
    world.advance()
    assert [job.plan.request.text for _, job in world.state.in_flight.ready] == ["pci:v2"]
    world.module_event("remove", "x")
    world.settle()
    assert sorted(world.calls) == ["a", "b", "c"]
    assert world.ids().count(DRIFT) == 1


def test_a_device_with_a_driver_is_no_drift(world: World) -> None:
    add_device(world, "pci:v2", driver="other")
    find_drift(world)
    world.settle()
    assert world.calls == []


def test_a_driver_override_is_respected(world: World) -> None:
    add_device(world, "pci:v2", override="vfio-pci")
    find_drift(world)
    world.settle()
    assert world.calls == []
    assert world.told() == [("c", "not_attempted")]


def test_a_device_whose_lock_is_held_is_left_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading driver_override blocks, unkillably, for the whole of a probe: the daemon must not."""
    monkeypatch.setattr("kmodd.host.driver_override.LIMIT", 0.2)
    add_device(world, "pci:v2")
    path = world.root / "sys/devices/dev0/driver_override"
    path.unlink()
    os.mkfifo(path)
    find_drift(world)
    world.settle()
    assert world.calls == []
    assert world.told() == [("c", "not_attempted")]


def test_devices_whose_locks_are_held_have_one_advance_wait_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon reads the kernel's socket in between."""
    monkeypatch.setattr("kmodd.host.driver_override.LIMIT", 0.2)
    found = []
    for name in ("one", "other"):
        folder = world.root / "sys/devices" / name
        folder.mkdir(parents=True)
        os.mkfifo(folder / "driver_override")
        found.append(Uevent("add", f"/devices/{name}", "pci", (f"pci:v2{name}",), 0, synthetic=True))
    world.handle(DevicesFound(tuple(found), "all"))
    world.handle(Advance())
    assert len(world.state.queue) == 1
    assert world.engine.can_advance(world.now)
    world.settle()
    assert world.told() == [("c", "not_attempted")] * 2


def test_a_removed_module_is_not_loaded_again_by_a_replay(world: World) -> None:
    add_device(world, "pci:v2")
    plug_and_remove(world)
    find_drift(world)
    world.settle()
    assert world.calls == ["c"]
    assert DRIFT not in world.ids()
    world.plug("pci:v2", "dev1")  # another device is real
    world.settle()
    assert world.calls == ["c", "c"]


def test_a_uevent_that_the_daemon_asks_for_does_not_override_an_operator(world: World) -> None:
    """A device without a `modalias` file is asked for its uevent; one triggered by hand is an operator's wish."""
    plug_and_remove(world)
    triggered_uevent(world, "ours")
    world.settle()
    assert world.calls == ["c"]
    triggered_uevent(world, "ours")
    triggered_uevent(world, "0")  # joins the one that waits
    world.settle()
    assert world.calls == ["c", "c"]


def test_a_module_removed_and_loaded_again_is_not_kept_out(world: World) -> None:
    add_device(world, "pci:v2")
    plug_and_remove(world)
    world.module_event("add", "c")
    world.lose_uevents()  # it is gone again, and the kernel did not tell
    find_drift(world)
    world.settle()
    assert world.calls == ["c", "c"]


def test_a_new_device_at_the_same_place_gets_a_module_that_was_removed(world: World) -> None:
    add_device(world, "pci:v2")
    plug_and_remove(world)
    world.unplug("dev0")
    find_drift(world)
    world.settle()
    assert world.calls == ["c", "c"]


def test_a_device_that_left_before_its_turn_keeps_nothing_out_for_the_next_one_at_its_place(world: World) -> None:
    """Its request is resolved after it has left, and records it as one that asked for c."""
    add_device(world, "pci:v2")
    world.plug("pci:v2", "dev0")
    world.unplug("dev0")
    world.settle()
    world.live()
    world.module_event("remove", "c")
    find_drift(world)
    world.settle()
    assert world.calls == ["c"]  # a control: without its event, no device is a new one
    world.plug("pci:v2", "dev0")
    world.advance()
    world.die("c")
    find_drift(world)
    world.settle()
    assert world.calls == ["c", "c", "c"]


def test_a_module_that_is_loaded_again_lets_devices_have_what_needs_it(world: World) -> None:
    """b needs a, and its device does not get it while a is kept out."""
    world.index(["a.ko:", "b.ko: a.ko"], ["alias pci:v1* a", "alias pci:v1* b"])
    world.reload()
    world.refuse = {"b": errno.EIO}
    world.plug("pci:v1", "dev0")
    world.settle()
    world.live()
    world.module_event("remove", "a")
    world.refuse = {}
    world.replay_device("pci:v1", "dev0")
    world.settle()
    assert world.calls == ["a", "b"]
    world.forget()
    world.module_event("add", "c")
    world.advance()
    assert world.replays == []  # a control: nothing was kept out
    world.live("a")
    world.module_event("add", "a")
    world.advance()
    assert world.replays == ["all"]
    world.replay_device("pci:v1", "dev0")
    world.settle()
    assert world.calls == ["a", "b", "b"]
