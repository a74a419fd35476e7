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


def test_no_tree_is_an_exit_status_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(tmp_path), "--kernel", "none"]) == 3
    assert "no module tree" in capsys.readouterr().err
