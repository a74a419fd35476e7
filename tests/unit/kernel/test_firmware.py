"""Devices that wait for firmware: what the kernel says of them, and where it looks (firmware_loader/main.c)."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmodd.dataclass import replace
from kmodd.host.file_watch import Watch
from kmodd.host.firmware_files import PATH, firmware_dirs, present, watched_dirs
from kmodd.kernel.firmware import MAX_WAITING, WORD, FirmwareWaits, MissingFirmware, missing_firmware, probe_path
from kmodd.kernel.kmsg import parse

DEVICE = b" SUBSYSTEM=pci\n DEVICE=+pci:0000:01:00.0\n"
WANTED = MissingFirmware("rtl_nic/rtl8168g-2.fw", "pci", "+pci:0000:01:00.0")
RELEASE = "6.1.0-56-amd64"

# ── the log ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b"r8169 0000:01:00.0: Direct firmware load for rtl_nic/rtl8168g-2.fw failed with error -2", WANTED.name),
        (b"r8169 0000:01:00.0: firmware: failed to load rtl_nic/rtl8168g-2.fw (-2)", WANTED.name),
        (b"b43 ssb0:0: Direct firmware load for a b.fw failed with error -2", "a b.fw"),
        (b"r8169 0000:01:00.0: Direct firmware load for rtl_nic/x.fw failed with error -11", None),
        (b"r8169 0000:01:00.0: firmware: failed to load rtl_nic/x.fw (-22)", None),
        (b"r8169 0000:01:00.0: firmware: direct-loading firmware rtl_nic/x.fw", None),
        (b"r8169 0000:01:00.0: Unable to load firmware rtl_nic/x.fw (-2)", None),
        (b"firmware_class: See https://wiki.debian.org/Firmware for information about missing firmware", None),
    ],
)
def test_what_the_kernel_says(text: bytes, name: str | None) -> None:
    """The texts stand in Debian's 6.1 and 6.12 kernels. Only -ENOENT ends when a file comes."""
    line = parse(b"4,1,2,-;" + text + b"\n" + DEVICE)
    assert line
    assert missing_firmware(line) == (name and MissingFirmware(name, "pci", "+pci:0000:01:00.0"))
    assert WORD in text or not name


def test_what_a_process_writes_into_the_log_is_not_believed() -> None:
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


# ── who waits ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_those_whose_file_came_are_given_once() -> None:
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


# ── the files ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_kernels_own_order(tmp_path: Path) -> None:
    usual = ("/lib/firmware/updates/R", "/lib/firmware/updates", "/lib/firmware/R", "/lib/firmware")
    assert firmware_dirs(str(tmp_path), "R") == usual
    parameter = tmp_path / PATH[1:]
    parameter.parent.mkdir(parents=True)
    for text, own in (("\n", []), ("/opt/firmware\n", ["/opt/firmware"])):
        parameter.write_text(text)
        assert list(firmware_dirs(str(tmp_path), "R")) == [*own, *usual]


@pytest.mark.parametrize("folder", ["updates/R", "updates", "R", ""])
@pytest.mark.parametrize("suffix", ["", ".xz", ".zst"])
def test_a_file_in_each_place(tmp_path: Path, folder: str, suffix: str) -> None:
    file = tmp_path / "lib/firmware" / folder / f"rtl_nic/x.fw{suffix}"
    assert not present(str(tmp_path), "R", "rtl_nic/x.fw")
    file.mkdir(parents=True)
    assert not present(str(tmp_path), "R", "rtl_nic/x.fw"), "a directory is no firmware"
    file.rmdir()
    file.touch()
    assert present(str(tmp_path), "R", "rtl_nic/x.fw")
    assert not present(str(tmp_path), "S" if folder.endswith("R") else "R", "x.fw")


def test_a_name_that_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lib/firmware").mkdir(parents=True)
    (tmp_path / "lib/secret").touch()
    assert not present(str(tmp_path), "R", "../secret")
    assert watched_dirs(str(tmp_path), "R", ["../secret"]) == ()


def test_a_file_that_comes_wakes_who_waits(tmp_path: Path) -> None:
    """The directories are not there yet; a package brings both."""
    watch = Watch()
    root, names = str(tmp_path), ["rtl_nic/x.fw", "rtl_nic/y.fw", "z.fw"]
    wanted = watched_dirs(root, "R", names)
    assert len(wanted) == 8
    watch.set(wanted)
    (tmp_path / "lib/firmware/rtl_nic").mkdir(parents=True)
    assert watch.changed()
    watch.set(wanted)
    (tmp_path / "lib/firmware/rtl_nic/x.fw.xz").touch()
    assert watch.changed()
    assert [name for name in names if present(root, "R", name)] == ["rtl_nic/x.fw"]
    watch.close()
