"""Devices that are there at the start: modalias files of sysfs, and buses that have none."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import pyudev

from kmodd.host.coldplug import modules, replay, trigger
from kmodd.planning.device_requests import wanted

UUID = "fe4d7c9d-b8c6-4a70-9ef1-3d8a58d18eed"


def device(root: Path, path: str, bus: str, modalias: str | None, kind: str = "bus") -> None:
    folder = root / "sys/devices" / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "uevent").write_text("")
    if modalias is not None:
        (folder / "modalias").write_text(modalias)
    links = root / f"sys/{kind}/{bus}" / ("devices" if kind == "bus" else "")
    links.mkdir(parents=True, exist_ok=True)
    (links / folder.name).symlink_to(os.path.relpath(folder, links))


def test_replay_reads_each_modalias_file_parents_first(tmp_path: Path) -> None:
    device(tmp_path, "pci0/0000:00:01.0/usb1/1-1/1-1:1.0", "usb", "usb:v1\n")
    device(tmp_path, "pci0/0000:00:01.0", "pci", "pci:v1\n")
    device(tmp_path, "virtual/dmi/id", "dmi", "dmi:bvn'Q\"$(x)\n", kind="class")
    device(tmp_path, "acpi0", "acpi", "acpi:PRP0001:\nof:NledT(null)Cgpio-leds\n")
    device(tmp_path, "tty0", "tty", None, kind="class")
    found = [(e.devpath, e.subsystem, e.modaliases, e.action, e.synthetic) for e in replay(str(tmp_path))]
    assert found == [
        ("/devices/acpi0", "acpi", ("acpi:PRP0001:", "of:NledT(null)Cgpio-leds"), "add", True),
        ("/devices/pci0/0000:00:01.0", "pci", ("pci:v1",), "add", True),
        ("/devices/pci0/0000:00:01.0/usb1/1-1/1-1:1.0", "usb", ("usb:v1",), "add", True),
        ("/devices/virtual/dmi/id", "dmi", ("dmi:bvn'Q\"$(x)",), "add", True),
    ]


def test_replay_never_opens_a_uevent_file(tmp_path: Path) -> None:
    """Reading it takes the device's lock and hangs behind a slow probe."""
    device(tmp_path, "pci0", "pci", "pci:v1\n")
    uevent_file = tmp_path / "sys/devices/pci0/uevent"
    uevent_file.unlink()
    os.mkfifo(uevent_file)  # opening it for reading would wait for ever
    assert len(list(replay(str(tmp_path)))) == 1


def test_devices_without_a_modalias_file_get_an_add_event(tmp_path: Path) -> None:
    """An MMC card has its MODALIAS in the event alone (drivers/mmc/core/bus.c)."""
    device(tmp_path, "mmc0/mmc0:0001", "mmc", None)
    device(tmp_path, "pci0", "pci", "pci:v1\n")
    assert trigger(str(tmp_path), UUID) == []
    assert (tmp_path / "sys/devices/mmc0/mmc0:0001/uevent").read_text() == f"add {UUID}"
    assert (tmp_path / "sys/devices/pci0/uevent").read_text() == ""


@pytest.mark.parametrize("loaded", ["parport_pc", "parport"])
def test_a_module_with_a_rule_of_its_own_is_found_and_not_written_to(tmp_path: Path, loaded: str) -> None:
    """Debian's 80-drivers.rules load ppdev for parport_pc; the unit's /sys/module is read-only."""
    (tmp_path / "sys/module" / loaded).mkdir(parents=True)
    (tmp_path / "sys/module" / loaded / "uevent").write_text("")
    asked = [request.text for event in modules(str(tmp_path)) for request in wanted(event, "coldplug")]
    assert asked == (["ppdev"] if loaded == "parport_pc" else [])
    assert trigger(str(tmp_path), UUID) == []
    assert (tmp_path / "sys/module" / loaded / "uevent").read_text() == ""


def test_a_kernel_without_uuids_gets_add_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device(tmp_path, "mmc0/mmc0:0001", "mmc", None)
    write, said = os.write, []

    def old(fd: int, text: bytes) -> int:
        said.append(text)
        if text != b"add":
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(fd, text)

    monkeypatch.setattr(os, "write", old)
    assert trigger(str(tmp_path), UUID) == []
    assert said == [f"add {UUID}".encode(), b"add"]


def test_replay_finds_what_a_walk_over_all_of_sysfs_finds() -> None:
    """On this machine: nothing with a `modalias` stands outside of the buses and classes."""
    walked = {
        os.path.join(folder, "modalias")[4:-9]
        for folder, _, files in os.walk("/sys/devices")
        if "modalias" in files and Path(folder, "modalias").read_bytes().strip()
    }
    assert {event.devpath for event in replay("")} == walked
    assert walked


def test_libudev_finds_the_same_devices() -> None:
    """pyudev lists what sends events; the root of a subsystem does not, but may have the processors' alias."""
    found = {
        device.device_path: device.subsystem
        for device in pyudev.Context().list_devices()
        if (device.attributes.get("modalias") or b"").strip()
    }
    ours = {event.devpath: event.subsystem for event in replay("") if not event.devpath.startswith("/devices/system/")}
    assert ours == {path: name for path, name in found.items() if not path.startswith("/devices/system/")}
    assert ours
