"""Devices that QEMU can plug, and the module that a stock Debian kernel drives each with.

Chosen from those that load something when plugged and that QEMU 7.2 lets go of again, unless noted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

#: The bus of USB devices: the identifier that the xHCI controller is plugged with.
USB_BUS: Final = "qemu-xhci.0"

#: The sound back end of every machine; since QEMU 8.2 a sound card has none of its own.
AUDIO: Final = "quiet"

BackEnd = tuple[str, Mapping[str, object]]  # a QMP command and its arguments


@dataclass(frozen=True)
class Device:
    """A kind of device; `options` are QEMU's.

    `module` must be live afterwards; `then`: what the device brings in later, through devices that appear behind it.
    """

    name: str
    module: str
    options: Mapping[str, object]
    bus: str = "pci"  # a root port is chosen at plugging; otherwise QEMU's name of the bus
    back_ends: tuple[BackEnd, ...] = field(default=())
    can_unplug: bool = True
    then: tuple[str, ...] = ()

    @property
    def modules(self) -> set[str]:
        """All modules that must be live when the device is ready."""
        return {self.module, *self.then} - {""}


def _disk(node: str) -> BackEnd:
    return ("blockdev-add", {"driver": "null-co", "node_name": node, "size": 64 << 20, "read_zeroes": True})


def _null(name: str) -> BackEnd:
    return ("chardev-add", {"id": name, "backend": {"type": "null", "data": {}}})


def _pci(name: str, module: str, *back_ends: BackEnd, **options: object) -> Device:
    return Device(name, module, {"driver": name, **options}, "pci", back_ends)


def _usb(name: str, module: str, *back_ends: BackEnd, then: tuple[str, ...] = (), **options: object) -> Device:
    return Device(name, module, {"driver": name, **options}, USB_BUS, back_ends, then=then)


_TABLE: Final = (
    # `romfile` empty: no option ROM, so no package with boot code is needed
    _pci("e1000e", "e1000e", romfile=""),
    _pci("e1000", "e1000", romfile=""),
    _pci("rtl8139", "8139cp", romfile=""),
    _pci("ne2k_pci", "ne2k_pci", romfile=""),
    _pci("pcnet", "pcnet32", romfile=""),
    _pci("i82550", "e100", romfile=""),
    _pci("tulip", "tulip", romfile=""),
    _pci("vmxnet3", "vmxnet3", romfile=""),
    _pci("virtio-net-pci", "virtio_net", romfile=""),
    _pci("virtio-rng-pci", "virtio_rng"),
    _pci("virtio-balloon-pci", "virtio_balloon"),
    _pci("virtio-scsi-pci", "virtio_scsi"),
    _pci("virtio-serial-pci", "virtio_console"),
    _pci("virtio-keyboard-pci", "virtio_input"),
    _pci("nvme", "nvme", _disk("nvme-disk"), drive="nvme-disk", serial="1"),
    _pci("pvscsi", "vmw_pvscsi"),
    _pci("lsi53c895a", "sym53c8xx"),
    _pci("mptsas1068", "mptsas"),
    _pci("i6300esb", "i6300esb"),
    _pci("sdhci-pci", "sdhci_pci"),
    _pci("ich9-ahci", "ahci"),
    _pci("AC97", "snd_intel8x0", audiodev=AUDIO),
    _pci("ES1370", "snd_ens1370", audiodev=AUDIO),
    _pci("pvpanic-pci", "pvpanic_pci"),
    # QEMU 7.2 never says that these went
    replace(_pci("intel-hda", "snd_hda_intel"), can_unplug=False),
    replace(_pci("qemu-xhci", "xhci_pci"), can_unplug=False),
    _usb("usb-storage", "usb_storage", _disk("stick"), then=("sd_mod",), drive="stick", removable=True),
    _usb("usb-kbd", "usbhid"),
    _usb("usb-mouse", "usbhid"),
    _usb("usb-tablet", "usbhid"),
    _usb("usb-net", "cdc_ether"),
    _usb("usb-serial", "ftdi_sio", _null("serial-line"), chardev="serial-line"),
    # bound by a driver that is built in and tells no alias: nothing to load
    _pci("pci-serial", "", _null("card-line"), chardev="card-line"),
)

DEVICES: Final[Mapping[str, Device]] = {device.name: device for device in _TABLE}
