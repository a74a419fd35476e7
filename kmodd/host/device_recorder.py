"""Record the devices of this machine from sysfs, without what names the machine or its owner unless asked for."""

from __future__ import annotations

import os
import re

from kmodd.host.coldplug import every_device, read_attribute
from kmodd.host.uevent_files import read_all
from kmodd.kernel.device_recording import RecordedDevice
from kmodd.text import decode

ATTRIBUTES = (
    "modalias", "vendor", "device", "subsystem_vendor", "subsystem_device", "class", "revision",
    "idVendor", "idProduct", "bDeviceClass", "bDeviceSubClass", "bDeviceProtocol", "bcdDevice",
    "bInterfaceNumber", "bInterfaceClass", "bInterfaceSubClass", "bInterfaceProtocol", "hid", "type",
)  # fmt: skip
"""Attributes that say what a device is, and whose reading takes no lock."""
SERIALS = (
    "serial", "address", "uniq", "unique_id", "wwid", "eui", "nguid", "uuid", "cid",
    "product_serial", "board_serial", "chassis_serial", "product_uuid", "board_asset_tag", "chassis_asset_tag",
)  # fmt: skip
"""Attributes that name one device or machine."""
_PROPERTIES = re.compile(
    "SUBSYSTEM|DEVTYPE|DRIVER|MODALIAS|PCI_(?:CLASS|ID|SUBSYS_ID|SLOT_NAME)|PRODUCT|TYPE|HID_ID|MMC_TYPE|MMC_NAME|"
    "SDIO_(?:CLASS|ID|REVISION)|OF_(?:NAME|FULLNAME|TYPE|COMPATIBLE_.*)|TIFM_CARD_TYPE|MAJOR|MINOR"
)
"""Properties that say what a device is; others, as `HID_UNIQ=`, `UNIQ=` and `INTERFACE=`, may name it."""
_ADDRESS = re.compile(r"(?<![0-9A-Fa-f])(?:[0-9A-Fa-f]{2}([:_-]))(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}(?![0-9A-Fa-f])")
_INTERFACE = re.compile(r"(?<=x)[0-9a-f]{12}(?![0-9a-f])")
"""The address in a name as enx001122334455 (systemd.net-naming-scheme(7))."""
_DIGIT = re.compile("[0-9A-Fa-f]")


def read_devices(root: str = "", *, serials: bool = False) -> tuple[RecordedDevice, ...]:
    """Return the devices of buses and classes, by path.

    Of one whose `uevent` file is not read in time, subsystem and attributes alone are known.

    root: prefix of /sys. serials: with serial numbers, hardware addresses and all properties.
    """
    found = dict(sorted(every_device(root)))
    folders = [f"{root}/sys{devpath}" for devpath in found]
    texts = read_all([f"{folder}/uevent" for folder in folders])
    devices = []
    for (devpath, subsystem), folder, text in zip(found.items(), folders, texts, strict=True):
        pairs = [(key, value) for key, _, value in (line.partition("=") for line in decode(text).splitlines())]
        named = [("SUBSYSTEM", subsystem), *(pair for pair in pairs if pair[0] != "SUBSYSTEM" and pair[0])]
        names = (*ATTRIBUTES, *SERIALS) if serials else ATTRIBUTES
        attributes = [(name, decode(data)) for name in names if (data := read_attribute(f"{folder}/{name}"))]
        device = RecordedDevice(devpath, tuple(named), tuple(attributes), tuple(_links(folder)))
        devices.append(device if serials else without_serials(device))
    return tuple(devices)


def without_serials(device: RecordedDevice) -> RecordedDevice:
    """Return a device without serial numbers; the digits of hardware addresses are zeros, in its path too."""
    return RecordedDevice(
        _masked(device.devpath),
        tuple((key, _masked(value)) for key, value in device.properties if _PROPERTIES.fullmatch(key)),
        tuple((name, _masked(value)) for name, value in device.attributes if name not in SERIALS),
        device.links,
    )


def _masked(text: str) -> str:
    for pattern in (_ADDRESS, _INTERFACE):
        text = pattern.sub(lambda found: _DIGIT.sub("0", found[0]), text)
    return text


def _links(folder: str) -> list[tuple[str, str]]:
    try:
        return [("driver", os.readlink(f"{folder}/driver"))]
    except OSError:
        return []
