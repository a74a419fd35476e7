"""What is in use: file systems and interfaces, with the modules that make the devices below them."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmodd.host.uses import read_uses
from kmodd.planning.essentials import Use


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def mounted(root: Path, device: str, place: str = "/") -> None:
    write(root / "proc/self/mountinfo", f"1 0 253:0 / {place} rw - ext4 /dev/x rw\n")
    link = root / "sys/dev/block/253:0"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(root / "sys/devices/virtual/block" / device)


@pytest.mark.parametrize(
    ("device", "file", "content", "modules"),
    [
        ("dm-0", "dm/uuid", "CRYPT-LUKS2-1-x", {"dm_mod", "dm_crypt"}),
        ("dm-0", "dm/uuid", "LVM-x", {"dm_mod"}),
        ("md0", "md/level", "raid1", {"md_mod", "raid1"}),
        ("md0", "md/level", "raid5", {"md_mod", "raid456"}),
    ],
)
def test_a_stacked_disk_hangs_on_what_makes_it(
    tmp_path: Path, device: str, file: str, content: str, modules: set[str]
) -> None:
    write(tmp_path / "sys/devices/virtual/block" / device / file, content + "\n")
    mounted(tmp_path, device)
    (use,) = read_uses(str(tmp_path))
    assert use.modules == modules


def test_a_file_system_is_in_use_though_no_module_drives_its_disk(tmp_path: Path) -> None:
    """It may be a module itself; a damaged line is none."""
    write(
        tmp_path / "proc/self/mountinfo", "1 0 0:40 / / rw - nfs s:/ rw\ndamaged\n2 1 0:5 / /a\\040b rw - tmpfs t rw\n"
    )
    assert read_uses(str(tmp_path)) == (
        Use("mount", "/", frozenset(), ("fs-nfs",)),
        Use("mount", "/a b", frozenset(), ("fs-tmpfs",)),
    )


@pytest.mark.parametrize(
    ("device", "module"), [("loop0", "loop"), ("zram0", "zram"), ("nbd3", "nbd"), ("ram0", "brd"), ("drbd1", "drbd")]
)
def test_a_virtual_disk_hangs_on_the_module_that_makes_it(tmp_path: Path, device: str, module: str) -> None:
    """The control is a disk with another name."""
    (tmp_path / "sys/devices/virtual/block" / device).mkdir(parents=True)
    mounted(tmp_path, device, "/srv")
    assert read_uses(str(tmp_path)) == (Use("mount", "/srv", frozenset({module}), ("fs-ext4",)),)
    mounted(tmp_path, "other0", "/srv")
    assert read_uses(str(tmp_path)) == (Use("mount", "/srv", frozenset(), ("fs-ext4",)),)


@pytest.mark.parametrize(("kind", "module"), [("bridge", "bridge"), ("bond", "bonding"), ("vlan", "8021q")])
def test_an_interface_without_a_driver_hangs_on_what_makes_it(tmp_path: Path, kind: str, module: str) -> None:
    write(tmp_path / "proc/net/route", "Iface\tDestination\nx0\t00000000\t01\t0003\nlo\t00000000\t01\t0003\n")
    place = tmp_path / "sys/devices/virtual/net/x0"
    write(place / "uevent", f"DEVTYPE={kind}\nINTERFACE=x0\n")
    (tmp_path / "sys/class/net").mkdir(parents=True)
    (tmp_path / "sys/class/net/x0").symlink_to(place)
    (use,) = read_uses(str(tmp_path))
    assert (use.name, use.modules, use.is_default) == ("x0", frozenset({module}), True)


def test_an_encrypted_disk_needs_its_cipher(tmp_path: Path) -> None:
    """By dmsetup, which may be missing or fail. The control is a disk that is not encrypted."""
    write(tmp_path / "sys/devices/virtual/block/dm-0/dm/uuid", "CRYPT-LUKS2-1-x\n")
    mounted(tmp_path, "dm-0")
    program = tmp_path / "dmsetup"
    write(program, "#!/bin/sh\necho 'root: 0 9 crypt aes-xts-plain64 :64:logon:x 0 254:1 32768'\necho damaged\n")
    program.chmod(0o755)
    (use,) = read_uses(str(tmp_path), str(program))
    assert use.aliases == ("fs-ext4", "crypto-aes", "crypto-xts")
    program.write_text("#!/bin/sh\nexit 1\n")
    assert read_uses(str(tmp_path), str(program))[0].aliases == ("fs-ext4",)
    assert read_uses(str(tmp_path), "/none")[0].aliases == ("fs-ext4",)
    mounted(tmp_path, "sda")
    write(program, "#!/bin/sh\ntouch $0.called\n")
    assert read_uses(str(tmp_path), str(program))[0].aliases == ("fs-ext4",)
    assert not (tmp_path / "dmsetup.called").exists()
