"""What `kmodd record` writes of a machine: its devices, and nothing that names the machine or its owner."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmodd.kernel.device_recording import parse
from tests import program

ADDRESS = "00:1b:44:11:3a:b7"
PERSONAL = (ADDRESS, "enx001b44113ab7", "001b44113ab7", "S3R1AL", "4c4c4544-0042")


def device(root: Path, bus: str, path: str, uevent: str, **attributes: str) -> None:
    folder = root / "sys/devices" / path
    folder.mkdir(parents=True)
    (folder / "uevent").write_text(uevent)
    for name, value in attributes.items():
        (folder / name).write_text(f"{value}\n")
    kind = root / "sys/class" / bus if bus in ("net", "dmi") else root / "sys/bus" / bus / "devices"
    kind.mkdir(parents=True, exist_ok=True)
    up = "../" * (len(kind.relative_to(root / "sys").parts))
    (kind / path.rpartition("/")[2]).symlink_to(f"{up}devices/{path}")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    device(tmp_path, "usb", "usb1/1-1", "DEVTYPE=usb_device\nPRODUCT=1/2/3\n", serial="S3R1AL", idVendor="0001")
    device(tmp_path, "net", "usb1/1-1/net/enx001b44113ab7", "INTERFACE=enx001b44113ab7\n", address=ADDRESS)
    device(tmp_path, "hid", "x/0005:046D:B342.0001", f"DRIVER=hid-generic\nHID_UNIQ={ADDRESS}\nMODALIAS=hid:b0005\n")
    device(tmp_path, "hid", f"x/hid-{ADDRESS}-battery", f"OF_NAME={ADDRESS}\nPOWER_SUPPLY_SERIAL_NUMBER=S3R1AL\n")
    device(tmp_path, "dmi", "virtual/dmi/id", "MODALIAS=dmi:x\n", product_serial="S3R1AL", product_uuid="4c4c4544-0042")
    return tmp_path


def recorded(machine: Path, *words: str) -> str:
    said = program.run(["record", *words, "--root", str(machine)])
    assert (said.status, said.err) == (0, b"")
    return said.out.decode()


def test_nothing_personal_is_recorded_unless_asked_for(machine: Path) -> None:
    text = recorded(machine)
    assert [word for word in PERSONAL if word in text] == []
    assert [word for word in PERSONAL if word not in recorded(machine, "--serials")] == [], "the control"


def test_the_devices_are_recorded(machine: Path) -> None:
    devices, problems = parse(recorded(machine), "x")
    assert problems == ()
    assert [(each.devpath, each.event.subsystem, each.event.modaliases, each.driver) for each in devices] == [
        ("/devices/usb1/1-1", "usb", (), ""),
        ("/devices/usb1/1-1/net/enx000000000000", "net", (), ""),
        ("/devices/virtual/dmi/id", "dmi", ("dmi:x",), ""),
        ("/devices/x/0005:046D:B342.0001", "hid", ("hid:b0005",), "hid-generic"),
        ("/devices/x/hid-00:00:00:00:00:00-battery", "hid", (), ""),
    ]
    assert dict(devices[0].attributes) == {"idVendor": "0001\n"}


def test_a_machine_without_devices_is_a_failure(tmp_path: Path) -> None:
    said = program.run(["record", "--root", str(tmp_path)])
    assert (said.status, said.out, said.err.count(b"\n")) == (1, b"", 1)
