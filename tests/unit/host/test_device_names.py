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
    until(lambda: names.get(interface))
    assert names.get(interface) == names.get(STICK) == "QEMU USB HARDDRIVE"
    assert names.get("/devices/none") == ""


def test_a_pci_device_has_the_name_of_the_hardware_database(root: Path) -> None:
    device = root / "sys/devices/0000:01:00.0"
    device.mkdir(parents=True)
    (device / "modalias").write_text("pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00\n")
    if not any(map(os.path.exists, ("/etc/udev/hwdb.bin", "/usr/lib/udev/hwdb.bin", "/lib/udev/hwdb.bin"))):
        pytest.skip("no hwdb.bin: the package udev is not installed")
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
