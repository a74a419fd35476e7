"""From a device, or a name of the boot list, to its modules and their records."""

from __future__ import annotations

import errno
from pathlib import Path

from kmodd.engine.events import DevicesFound, ReadAhead, UeventReceived
from kmodd.kernel import uevent
from kmodd.planning.plan import Insmod
from tests.world import World


def test_a_device_brings_its_module_and_what_that_depends_on(world: World) -> None:
    world.plug("pci:v1d2")
    world.settle()
    assert world.calls == ["a", "b"]
    records = [dict(record.fields) for record in world.records]
    assert [r["KMODD_MODULE"] for r in records] == ["a", "b"]
    assert records[0]["KMODD_BECAUSE"] == "dependency of b"
    assert records[1]["KMODD_PATTERN"] == "pci:v1*"
    assert records[1]["KMODD_ALIAS"] == "pci:v1d2"
    assert records[1]["KMODD_DEVPATH"] == "/devices/0000:01:00.0"
    assert records[1]["KMODD_BECAUSE"] == "alias matched pci:v1* of modules.alias:1"


def test_a_live_module_is_recorded_and_not_loaded(world: World) -> None:
    world.live("c")
    world.pass_time(1.1)  # the engine has read the list of loaded modules at its start
    world.plug("pci:v2")
    world.settle()
    assert world.calls == []
    assert world.told() == [("c", "live")]


def test_a_blacklisted_module_is_recorded_with_the_line(world: World) -> None:
    """In the daemon a device's blacklist means what udevd means."""
    (world.root / "etc/modprobe.d/x.conf").write_text("\nblacklist c\n")
    world.reload()
    world.plug("pci:v2")
    world.settle()
    assert "blacklisted at /etc/modprobe.d/x.conf:2" in world.records[-1].message
    assert world.calls == []


def test_a_missing_file_is_recorded_as_missing(world: World) -> None:
    (world.modules / "c.ko").unlink()
    world.plug("pci:v2")
    world.settle()
    assert ("c", "missing") in world.told()


def test_a_module_that_refuses_does_not_stop_others(world: World) -> None:
    world.refuse["c"] = errno.ENODEV
    world.plug("pci:v2")
    world.plug("pci:v1", "0000:02:00.0")
    world.settle()
    assert world.told() == [("c", "failed"), ("a", "loaded"), ("b", "loaded")]


def test_an_operator_s_parameters_reach_the_loader(world: World) -> None:
    world.order("c", "x=1")
    world.advance()
    (step,) = world.batch("c").steps
    assert isinstance(step, Insmod)
    assert step.options == "x=1"


def test_a_dry_run_starts_nothing(tmp_path: Path) -> None:
    world = World(tmp_path / "machine", dry_run=True)
    world.plug("pci:v1")
    world.advance()
    assert world.told() == [("a", "not_attempted"), ("b", "not_attempted")]
    assert world.started == {}


def test_modules_loaded_before_the_start_are_one_record(world: World) -> None:
    """An initramfs has loaded them."""
    world.live("c", "a", "b")
    world.pass_time(1.1)
    event = uevent.parse(b"add@/devices/x\0SUBSYSTEM=pci\0MODALIAS=pci:v1\0MODALIAS=pci:v2\0")
    world.handle(DevicesFound((event,)))
    world.settle()
    world.finish_boot()
    assert world.records[0].message == "2 modules loaded before kmodd started: b c"
    assert world.records[1].message == "Coldplug done in 0us: 1 device, 0 modules"
    world.finish_boot()
    assert len(world.records) == 2


def test_what_kmodd_has_loaded_before_was_not_there(world: World) -> None:
    """Modules of the boot list, and of devices that appear during coldplug, are live when coldplug asks for them."""
    world.boot_list("c")
    world.settle()
    event = uevent.parse(b"add@/devices/x\0SUBSYSTEM=pci\0MODALIAS=pci:v1\0MODALIAS=pci:v2\0")
    world.handle(DevicesFound((event,)))
    world.plug("pci:v1", "child")
    world.settle()
    world.finish_boot()
    assert not any("before kmodd started" in record.message for record in world.records)


def test_the_boot_list_is_loaded_and_recorded_as_devices_are(world: World) -> None:
    world.boot_list("b", "nothing")
    assert world.state.queue.boot_left == {"b", "nothing"}
    world.settle()
    assert not world.state.queue.boot_left
    assert world.calls == ["a", "b"]
    fields = next(dict(each.fields) for each in world.records if each.message.startswith("Loaded b"))
    assert (fields["KMODD_SOURCE"], fields["KMODD_BECAUSE"]) == ("boot", "listed in /etc/modules:1")
    assert ("f10a", "nomatch") in world.told()


def test_the_name_of_a_usb_device_is_read_before_its_interfaces_come(world: World) -> None:
    """So the record of an interface without a driver has it."""
    device = b"add@/devices/usb1/1-4\0SUBSYSTEM=usb\0DEVTYPE=usb_device\0PRODUCT=bda/b832/0\0"
    commands = world.handle(UeventReceived(uevent.parse(device)))
    assert commands == [ReadAhead((), ("/devices/usb1/1-4",))]
    others = (
        device.replace(b"usb_device", b"usb_interface"), device.replace(b"add@", b"change@"),
        device + b"SYNTH_UUID=0\0",
    )  # fmt: skip
    for text in others:
        assert world.handle(UeventReceived(uevent.parse(text))) == [], text
