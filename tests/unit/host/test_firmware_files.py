"""Where the kernel looks for firmware, and the watch on it (firmware_loader/main.c)."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmodd.host.file_watch import Watch
from kmodd.host.firmware_files import PATH, firmware_dirs, present, watched_dirs
from kmodd.kernel.firmware import MissingFirmware

DEVICE = b" SUBSYSTEM=pci\n DEVICE=+pci:0000:01:00.0\n"
WANTED = MissingFirmware("rtl_nic/rtl8168g-2.fw", "pci", "+pci:0000:01:00.0")
RELEASE = "6.1.0-56-amd64"


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


def test_a_new_firmware_file_wakes_the_loop(tmp_path: Path) -> None:
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
