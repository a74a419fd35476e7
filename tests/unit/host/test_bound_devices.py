"""Devices that the drivers of a module are bound to."""

from __future__ import annotations

from pathlib import Path

from kmodd.host.bound_devices import devices_of


def test_devices_of_a_module_are_those_bound_to_its_drivers(tmp_path: Path) -> None:
    """A driver's folder has links to its module and to files, too. The control is a device of another driver."""
    for driver, device in (("e1000", "0000:00:03.0"), ("e1000", "0000:00:05.0"), ("igb", "0000:00:04.0")):
        place, folder = tmp_path / "sys/devices/pci0" / device, tmp_path / "sys/bus/pci/drivers" / driver
        module = tmp_path / "sys/module" / driver
        place.mkdir(parents=True)
        folder.mkdir(parents=True, exist_ok=True)
        (module / "drivers").mkdir(parents=True, exist_ok=True)
        (folder / device).symlink_to(place)
        (folder / "bind").touch()
        if not (folder / "module").is_symlink():
            (folder / "module").symlink_to(module)
            (module / f"drivers/pci:{driver}").symlink_to(folder)
    assert devices_of("e1000", str(tmp_path)) == ("/sys/devices/pci0/0000:00:03.0", "/sys/devices/pci0/0000:00:05.0")
    assert devices_of("igb", str(tmp_path)) == ("/sys/devices/pci0/0000:00:04.0",)
    assert devices_of("gone", str(tmp_path)) == ()
