"""Requests that follow from a uevent."""

from __future__ import annotations

from kmodd.kernel import uevent
from kmodd.planning.device_requests import wanted


def event(text: str) -> uevent.Uevent:
    return uevent.parse(text.replace(" ", "\0").encode() + b"\0")


def texts(words: str) -> tuple[str, ...]:
    return tuple(request.text for request in wanted(event(words), "uevent"))


def test_only_add_loads() -> None:
    """80-drivers.rules: `ACTION!="add", GOTO="drivers_end"`; loading on bind or change brings a removed driver back."""
    assert texts("add@/x MODALIAS=pci:v1") == ("pci:v1",)
    for action in ("remove", "change", "bind", "unbind", "move", "online", "offline"):
        assert texts(f"{action}@/x MODALIAS=pci:v1") == ()


def test_udevds_rules_that_go_by_other_things_than_modalias() -> None:
    """The other load lines of 80-drivers.rules, and Debian's own of 80-debian-compat.rules."""
    assert texts("add@/d/tifm_sd0:0 SUBSYSTEM=tifm TIFM_CARD_TYPE=SD") == ("tifm_sd",)
    assert texts("add@/d/tifm_sd0:0 SUBSYSTEM=tifm TIFM_CARD_TYPE=MS") == ("tifm_ms",)
    assert texts("add@/d/tifm_sd0:0 SUBSYSTEM=tifm TIFM_CARD_TYPE=XD") == ()
    assert texts("add@/d/memstick0 SUBSYSTEM=memstick") == ("ms_block", "mspro_block")
    assert texts("add@/module/parport_pc SUBSYSTEM=module") == ("ppdev",)
    assert texts("add@/module/parport SUBSYSTEM=module") == ()
    assert texts("add@/d/mtd3ro SUBSYSTEM=mtd MTD_FTL=smartmedia") == ("sm_ftl",)
    assert texts("add@/d/mtd3 SUBSYSTEM=mtd MTD_FTL=smartmedia") == ()
    assert texts("add@/d/0:0:0:0 SUBSYSTEM=scsi DEVTYPE=scsi_device MODALIAS=scsi:t-0x00") == ("scsi:t-0x00", "sg")
    assert texts("add@/d/host0 SUBSYSTEM=scsi DEVTYPE=scsi_host") == ()
