"""`kmodd devices`: what is there, driven by what, and what would match."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from kmodd.cli.devices import main
from tests import program
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


def listed(root: Path, capsys: pytest.CaptureFixture[str], *words: str) -> list[list[str]]:
    """Device, driver, state and modules of each line of the list, as --json has them."""
    assert main(["--json", *words, "--root", str(root)]) in (0, 1)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [
        [line["path"].rpartition("/")[2], line["driver"], line["state"], *(each["module"] for each in line["modules"])]
        for line in lines
    ]


def test_each_device_with_its_driver_and_modules(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """After an oops inside a probe the device's lock stays held: `devices` works."""
    device(world.root, "one", "pci:v1", driver="b")
    device(world.root, "two", "pci:v2")
    device(world.root, "three", "pci:v9")
    world.live("b")
    assert main(["--root", str(world.root)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "DEVICE     NAME  DRIVER  STATE      MODULES",
        "pci one    -     b       bound      b (live)",
        "pci three  -     -       no module  -",
        "pci two    -     -       no driver  c",
    ]
    assert main(["--unbound", "--root", str(world.root)]) == 1
    assert capsys.readouterr().out.splitlines()[1:] == ["pci two  -     -       no driver  c"]


def test_states(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Blacklisted is blocked for a device; a class has no drivers, so its device is `loaded` with its module."""
    (world.root / "etc/modprobe.d/x.conf").write_text("blacklist c\n")
    device(world.root, "two", "pci:v2")
    device(world.root, "one", "pci:v1")
    folder = world.root / "sys/devices/virtual/x0"
    folder.mkdir(parents=True)
    (folder / "modalias").write_text("pci:v1\n")
    (world.root / "sys/class/x").mkdir(parents=True)
    (world.root / "sys/class/x/x0").symlink_to("../../devices/virtual/x0")
    world.live("b")
    assert listed(world.root, capsys) == [
        ["one", None, "no driver", "b"],
        ["two", None, "blocked", "c"],
        ["x0", None, "loaded", "b"],
    ]
    assert [line[0] for line in listed(world.root, capsys, "--unbound")] == ["one", "two"]


def test_removed_is_what_an_administrator_removed(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    device(world.root, "two", "pci:v2")
    assert listed(world.root, capsys) == [["two", None, "no driver", "c"]], "the control"
    (world.root / "run/kmodd").mkdir(parents=True)
    standing = {"crashed": [], "removed": {"c": ["/devices/two"]}}
    (world.root / "run/kmodd/standing").write_text(json.dumps(standing))
    assert listed(world.root, capsys) == [["two", None, "removed", "c"]]
    world.live("c")
    assert listed(world.root, capsys) == [["two", None, "no driver", "c"]], "loaded again"


def test_a_name_with_escapes_is_shown_escaped(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    device(world.root, "a\x1b[31m\u202eb", "pci:v2")
    assert main(["--root", str(world.root)]) == 0
    assert "pci a\\x1b[31m\\u202eb  -" in capsys.readouterr().out


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
    assert listed(world.root, capsys) == [
        ["memstick0", None, "no module"],
        ["mmc0:0001", None, "no driver", "b"],
        ["two", None, "no driver", "c"],
        ["z.1", "z", "bound", "c"],
    ]
    assert [line[0] for line in listed(world.root, capsys, "--unbound")] == ["mmc0:0001", "two"]


def test_without_a_module_tree_the_devices_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device(tmp_path, "one", "pci:v1", driver="b")
    device(tmp_path, "two", "pci:v2")
    assert main(["--root", str(tmp_path), "--kernel", "none"]) == 3
    out, err = capsys.readouterr()
    assert [line.split("  ")[0] for line in out.splitlines()[1:]] == ["pci one", "pci two"]
    assert "no module tree" in err
    assert main(["--unbound", "--root", str(tmp_path), "--kernel", "none"]) == 3
    assert capsys.readouterr().out == ""


def test_a_narrow_terminal_shortens_the_modules_first(world: World) -> None:
    """Device, driver and state stay whole at 80 columns. Control: a pipe gets all of it."""
    names = [f"module_with_a_long_name_{number}" for number in range(6)]
    world.add_files(*names)
    world.index(deps=[f"{name}.ko:" for name in names], aliases=[f"alias pci:v1* {name}" for name in names])
    device(world.root, "0000:00:01.0", "pci:v1")
    options = ["devices", "--root", str(world.root)]
    for columns in (80, 100):
        row = program.on_terminal(options, {"TERM": "dumb", "COLUMNS": str(columns)}).decode().splitlines()[1]
        assert row.startswith("pci 0000:00:01.0  -     -       no driver  module_with_a_long_name_0, ")
        assert len(row) == columns
        assert row.endswith("…")
    piped = program.run(options).out.decode()
    assert all(name in piped for name in names)
