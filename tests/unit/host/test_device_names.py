"""Names of devices: read by a child, from the device's strings or the hardware database."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kmodd.host.device_names import MAX_CHILDREN, MAX_LENGTH, DeviceNames, shown

STICK = "/devices/pci0000:00/0000:00:01.0/usb2/2-1"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    stick = tmp_path / f"sys{STICK}"
    (stick / "2-1:1.0").mkdir(parents=True)
    (stick / "idVendor").write_text("0627\n")
    (stick / "product").write_text("QEMU USB HARDDRIVE\n")
    return tmp_path


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        os.sched_yield()


def test_an_interface_has_the_name_of_its_usb_device(root: Path) -> None:
    names = DeviceNames(str(root))
    interface = f"{STICK}/2-1:1.0"
    assert names.get(interface) == "", "nothing waits for a name"
    names.start([interface, STICK, "/devices/none"])
    until(lambda: names.get(STICK))  # the child writes a line for each, and may be between two
    assert names.get(interface) == names.get(STICK) == "QEMU USB HARDDRIVE"
    assert names.get("/devices/none") == ""


def test_an_interface_has_the_name_that_was_read_of_its_device(root: Path) -> None:
    """So it has one when its event comes; other devices do not take the name of what they are behind."""
    names = DeviceNames(str(root))
    names.start([STICK])
    until(lambda: names.get(STICK))
    before = len(os.listdir("/proc/self/fd"))
    names.start([f"{STICK}/2-1:1.0"])
    assert len(os.listdir("/proc/self/fd")) == before, "no child is needed"
    assert names.get(f"{STICK}/2-1:1.0") == "QEMU USB HARDDRIVE"
    assert names.get(f"{STICK}/2-1.4") == ""
    assert names.get(f"{STICK}/host0") == ""


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"vendor": "QEMU    \n", "model": "QEMU HARDDISK   \n"}, "QEMU QEMU HARDDISK"),
        ({"name": "SA08G\n"}, "SA08G"),
        ({"vendor": "0x1af4\n", "device": "0x0001\n", "net/eth0/mtu": "1500\n"}, "eth0"),
        ({"block/vda/size": "1\n"}, "vda"),
        ({"model": "\n", "net/b/x": "", "net/a/x": ""}, "a"),
        ({"vendor": "0x1af4\n"}, ""),
    ],
)
def test_a_device_has_the_name_in_its_attributes(tmp_path: Path, attributes: dict[str, str], expected: str) -> None:
    """A disk, a card; else the interface or disk that its driver has made of it."""
    for name, text in {"uevent": "", **attributes}.items():
        path = tmp_path / "sys/devices/x" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    stick = tmp_path / f"sys{STICK}"
    stick.mkdir(parents=True)
    (stick / "idVendor").write_text("0627\n")
    (stick / "product").write_text("last\n")
    names = DeviceNames(str(tmp_path))
    names.start(["/devices/x", STICK])
    until(lambda: names.get(STICK))
    assert names.get("/devices/x") == expected


def test_a_pci_device_has_the_name_of_the_hardware_database(root: Path) -> None:
    device = root / "sys/devices/0000:01:00.0"
    device.mkdir(parents=True)
    (device / "modalias").write_text("pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00\n")
    names = DeviceNames(str(root))
    names.start(["/devices/0000:01:00.0"])
    until(lambda: names.get("/devices/0000:01:00.0"))
    assert names.get("/devices/0000:01:00.0") == "82574L Gigabit Network Connection"


def test_the_children_at_a_time_are_bounded(root: Path) -> None:
    """A child hangs at the lock of a device whose probe does not return."""
    names = DeviceNames(str(root))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(4 * MAX_CHILDREN):
        names.start(["/devices/none"])
        assert len(os.listdir("/proc/self/fd")) <= before + MAX_CHILDREN


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Plain", "Plain"),
        ('a "b"\n\x1b[31m c', "a 'b' [31m c"),
        ("x" * 100, "x" * (MAX_LENGTH - 1) + "…"),
        ("\u202egnp", "gnp"),
    ],
)
def test_a_name_is_one_short_line(name: str, expected: str) -> None:
    assert shown(name) == expected
