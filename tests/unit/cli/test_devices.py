"""`kmodd devices`: what is there, driven by what, and what would match."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kmodd.cli.devices import main
from tests.world import World


def device(root: Path, name: str, alias: str, driver: str = "") -> None:
    folder = root / "sys/devices" / name
    folder.mkdir(parents=True)
    (folder / "modalias").write_text(f"{alias}\n")
    os.mkfifo(folder / "uevent")  # a reader waits for ever, as behind a probe that crashed
    os.mkfifo(folder / "driver_override")
    devices = root / "sys/bus/pci/devices"
    devices.mkdir(parents=True, exist_ok=True)
    (devices / name).symlink_to(f"../../../devices/{name}")
    if driver:
        (folder / "driver").symlink_to(f"../../bus/pci/drivers/{driver}")


def test_each_device_with_its_driver_and_modules(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """After an oops inside a probe the device's lock stays held: `devices` works."""
    device(world.root, "one", "pci:v1", driver="b")
    device(world.root, "two", "pci:v2")
    device(world.root, "three", "pci:v9")
    world.live("b")
    assert main(["--root", str(world.root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["/devices/one  b  b (live)", "/devices/three  -  -", "/devices/two  -  c"]
    assert main(["--unbound", "--root", str(world.root)]) == 1
    assert capsys.readouterr().out.splitlines() == ["/devices/two  -  c"]


def card(root: Path, bus: str, name: str, text: str | None) -> None:
    """A device without a `modalias` file; `text` None: a reader of its `uevent` waits for ever."""
    folder = root / "sys/devices" / name
    folder.mkdir(parents=True)
    if text is None:
        os.mkfifo(folder / "uevent")
    else:
        (folder / "uevent").write_text(text)
    devices = root / f"sys/bus/{bus}/devices"
    devices.mkdir(parents=True, exist_ok=True)
    (devices / name).symlink_to(f"../../../devices/{name}")


def test_devices_without_a_modalias_file(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """An MMC card has its alias in `uevent` alone, a memory stick gets modules by a rule; a hub asks for nothing."""
    device(world.root, "two", "pci:v2")
    card(world.root, "mmc", "mmc0:0001", "MMC_TYPE=SD\nMODALIAS=pci:v1\n")
    card(world.root, "auxiliary", "hangs.0", None)
    card(world.root, "auxiliary", "z.1", "MODALIAS=pci:v2aux\n")
    card(world.root, "memstick", "memstick0", "A=b\n")
    card(world.root, "usb", "hub", "DEVTYPE=usb_device\n")
    (world.root / "sys/devices/z.1/driver").symlink_to("../../bus/auxiliary/drivers/z")
    assert main(["--root", str(world.root)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "/devices/memstick0  -  -",
        "/devices/mmc0:0001  -  b",
        "/devices/two  -  c",
        "/devices/z.1  z  c",
    ]
    assert main(["--unbound", "--root", str(world.root)]) == 1
    assert capsys.readouterr().out.splitlines() == ["/devices/mmc0:0001  -  b", "/devices/two  -  c"]


def test_no_tree_is_an_exit_status_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(tmp_path), "--kernel", "none"]) == 3
    assert "no module tree" in capsys.readouterr().err
