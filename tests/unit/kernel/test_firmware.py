"""Devices that wait for firmware, from the kernel's messages (firmware_loader/main.c)."""

from __future__ import annotations

import pytest

from kmodd.dataclass import replace
from kmodd.kernel.firmware import MAX_WAITING, WORD, FirmwareWaits, MissingFirmware, missing_firmware, probe_path
from kmodd.kernel.kmsg import parse

DEVICE = b" SUBSYSTEM=pci\n DEVICE=+pci:0000:01:00.0\n"
WANTED = MissingFirmware("rtl_nic/rtl8168g-2.fw", "pci", "+pci:0000:01:00.0")
RELEASE = "6.1.0-56-amd64"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b"r8169 0000:01:00.0: Direct firmware load for rtl_nic/rtl8168g-2.fw failed with error -2", WANTED.name),
        (b"r8169 0000:01:00.0: firmware: failed to load rtl_nic/rtl8168g-2.fw (-2)", WANTED.name),
        (b"snd hda 0000:01:00.0: Direct firmware load for a b.fw failed with error -2", "a b.fw"),
        (b"b43 ssb0:0: Direct firmware load for a b.fw failed with error -2", None),
        (b"r8169 0000:01:00.0: Direct firmware load for rtl_nic/x.fw failed with error -11", None),
        (b"r8169 0000:01:00.0: firmware: failed to load rtl_nic/x.fw (-22)", None),
        (b"r8169 0000:01:00.0: firmware: direct-loading firmware rtl_nic/x.fw", None),
        (b"r8169 0000:01:00.0: Unable to load firmware rtl_nic/x.fw (-2)", None),
        (b"firmware_class: See https://wiki.debian.org/Firmware for information about missing firmware", None),
    ],
)
def test_the_kernels_message_names_file_and_device(text: bytes, name: str | None) -> None:
    """The texts are those of Debian's 6.1 and 6.12. Only -ENOENT ends with a new file."""
    line = parse(b"4,1,2,-;" + text + b"\n" + DEVICE)
    assert line
    assert missing_firmware(line) == (name and MissingFirmware(name, "pci", "+pci:0000:01:00.0"))
    assert WORD in text or not name


@pytest.mark.parametrize("end", [b"", b" 0003:046D:C31C.0001: Direct firmware load for x failed with error -2"])
def test_a_device_cannot_forge_a_firmware_message_by_its_name(end: bytes) -> None:
    """The message of a driver about the device may have the name that the device gives itself."""
    name = b"K 0003:046D:C31C.0001: Direct firmware load for x failed with error -2" + end
    hid = b"\n SUBSYSTEM=hid\n DEVICE=+hid:0003:046D:C31C.0001\n"
    begin = b"4,1,2,-;hid-generic 0003:046D:C31C.0001: "
    line = parse(begin + b"input0: USB HID v1.10 Keyboard: " + name + hid)
    assert line
    assert missing_firmware(line) is None
    real = parse(begin + b"Direct firmware load for x failed with error -2" + hid)
    assert real
    assert missing_firmware(real) == MissingFirmware("x", "hid", "+hid:0003:046D:C31C.0001")


def test_a_process_cannot_forge_a_firmware_message() -> None:
    line = parse(b"12,1,2,-;r8169 0000:01:00.0: Direct firmware load for x failed with error -2\n" + DEVICE)
    assert line
    assert missing_firmware(line) is None
    assert missing_firmware(replace(line, facility=0))


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("+pci:0000:01:00.0", ("/sys/bus/pci/drivers_probe", "0000:01:00.0")),
        ("+usb:1-1:1.0", ("/sys/bus/usb/drivers_probe", "1-1:1.0")),
        ("+mdio_bus:fixed-0:00", ("/sys/bus/mdio_bus/drivers_probe", "fixed-0:00")),
        ("b8:0", None), ("c1:2", None), ("n3", None), ("", None), ("+", None), ("+pci", None), ("+pci:", None),
        ("+../x:y", None), ("+:y", None),
    ],
)  # fmt: skip
def test_how_a_device_is_probed_again(device: str, expected: tuple[str, str] | None) -> None:
    assert probe_path(MissingFirmware("x", "pci", device)) == expected


def test_devices_are_returned_once_their_file_exists() -> None:
    waits = FirmwareWaits()
    other, later = replace(WANTED, device="+pci:0000:02:00.0"), replace(WANTED, name="later.fw")
    assert [waits.add(missing) for missing in (WANTED, later, other, WANTED)] == [True, True, True, False]
    assert list(waits.names) == [WANTED.name, "later.fw"]
    assert waits.came(lambda name: False) == []
    assert waits.came(lambda name: name == WANTED.name) == [WANTED, other]
    assert waits.came(lambda name: name == WANTED.name) == []
    assert list(waits.names) == ["later.fw"]
    assert waits.add(WANTED), "it failed once more"


def test_a_device_that_fails_for_ever_fills_nothing() -> None:
    waits = FirmwareWaits()
    for number in range(10 * MAX_WAITING):
        waits.add(replace(WANTED, device=f"+usb:1-{number}"))
        waits.add(WANTED)
    kept = waits.came(lambda name: True)
    assert len(kept) == MAX_WAITING
    assert kept[-1].device == f"+usb:1-{10 * MAX_WAITING - 1}"
