"""What is in use: file systems and interfaces, with the modules that make the devices below them."""

from __future__ import annotations

import os
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
        ("dm-0", "dm/uuid", "CRYPT-VERITY-1-x", {"dm_mod", "dm_verity"}),
        ("dm-0", "dm/uuid", "mpath-1", {"dm_mod", "dm_multipath"}),
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


def routed(root: Path, name: str, **interfaces: str) -> None:
    """Interfaces without a driver, each with lines of its uevent; a default route by one."""
    write(root / "proc/net/route", f"Iface\tDestination\n{name}\t00000000\t01\t0003\nlo\t00000000\t01\t0003\n")
    (root / "sys/class/net").mkdir(parents=True)
    for each, lines in interfaces.items():
        place = root / "sys/devices/virtual/net" / each
        write(place / "uevent", f"{lines}INTERFACE={each}\n")
        (root / "sys/class/net" / each).symlink_to(place)


@pytest.mark.parametrize("kind", ["bridge", "bond", "vlan", "wireguard", "vxlan", "geneve", "hsr", "macvlan"])
def test_an_interface_without_a_driver_hangs_on_what_makes_it(tmp_path: Path, kind: str) -> None:
    """Also where it is below the one with the route. The control is an interface of a device."""
    routed(tmp_path, "x0", x0=f"DEVTYPE={kind}\n", y0="", z0="DEVTYPE=wlan\n")
    (tmp_path / "sys/devices/virtual/net/y0/lower_x0").symlink_to("../x0")
    (use,) = read_uses(str(tmp_path))
    assert (use.name, use.aliases, use.is_default) == ("x0", (f"rtnl-link-{kind}",), True)
    for name, aliases in (("y0", (f"rtnl-link-{kind}",)), ("z0", ())):
        (tmp_path / "sys/devices/virtual/net/z0/device").mkdir(exist_ok=True)
        write(tmp_path / "proc/net/route", f"Iface\tDestination\n{name}\t00000000\t01\t0003\n")
        assert read_uses(str(tmp_path))[0].aliases == aliases


@pytest.mark.parametrize(
    ("said", "aliases"),
    [
        ('[{"ifname":"lo"},{"ifname":"x0","linkinfo":{"info_kind":"vrf"}}]', ("rtnl-link-vrf", "rtnl-link-prp")),
        ('[1,{"linkinfo":{"info_kind":"vrf"}}]', ("rtnl-link-prp",)),
        ("damaged", ("rtnl-link-prp",)),
        ("", ("rtnl-link-prp",)),
    ],
)
def test_the_kind_of_an_interface_is_that_of_the_kernel(tmp_path: Path, said: str, aliases: tuple[str, ...]) -> None:
    """By ip, which may be missing or print something else; few interfaces have it in sysfs."""
    routed(tmp_path, "x0", x0="", y0="DEVTYPE=prp\n")
    (tmp_path / "sys/devices/virtual/net/x0/lower_y0").symlink_to("../y0")
    program = tmp_path / "ip"
    write(program, f"#!/bin/sh\n[ \"$*\" = '-details -json link show' ] && echo '{said}'\n")
    program.chmod(0o755)
    assert read_uses(str(tmp_path), ip=str(program))[0].aliases == aliases
    assert read_uses(str(tmp_path), ip="/none")[0].aliases == ("rtnl-link-prp",)


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


def disk(root: Path, path: str, driver: str) -> Path:
    """A block device below a device with a driver."""
    module = root / "sys/module" / driver
    module.mkdir(parents=True, exist_ok=True)
    bus = root / "sys/bus/x/drivers" / driver
    bus.mkdir(parents=True, exist_ok=True)
    if not (bus / "module").exists():
        (bus / "module").symlink_to(module)
    place = root / "sys/devices" / path
    place.mkdir(parents=True)
    (place.parents[1] / "driver").symlink_to(bus)
    return place


@pytest.mark.parametrize(
    ("part", "uuid", "module"),
    [
        ("vg-root_rimage_0", "LVM-x", "dm_raid"),
        ("vg-root_mimage_1", "LVM-x", "dm_mirror"),
        ("vg-pool_tdata", "LVM-x", "dm_thin_pool"),
        ("vg-pool-tpool", "LVM-x-tpool", "dm_thin_pool"),
        ("vg-root_corig", "LVM-x", "dm_cache"),
        ("vg-root-real", "LVM-x-real", "dm_snapshot"),
        ("vg-other", "LVM-x", ""),
    ],
)
def test_a_logical_volume_hangs_on_what_joins_its_parts(tmp_path: Path, part: str, uuid: str, module: str) -> None:
    """And on the drivers of the disks below these."""
    virtual = tmp_path / "sys/devices/virtual/block"
    write(virtual / "dm-0/dm/uuid", "LVM-x\n")
    write(virtual / "dm-1/dm/uuid", f"{uuid}\n")
    write(virtual / "dm-1/dm/name", f"{part}\n")
    for upper, lower in (("dm-0", virtual / "dm-1"), ("dm-1", disk(tmp_path, "pci/one/block/sda", "ahci"))):
        (virtual / upper / "slaves").mkdir()
        (virtual / upper / "slaves" / lower.name).symlink_to(lower)
    mounted(tmp_path, "dm-0")
    (use,) = read_uses(str(tmp_path))
    assert use.modules == {"dm_mod", "ahci"} | ({module} if module else set())


def test_btrfs_hangs_on_all_of_its_disks(tmp_path: Path) -> None:
    """By the list in sysfs; another file system has one disk."""
    write(tmp_path / "proc/self/mountinfo", "1 0 0:40 / / rw - btrfs /dev/sda1 rw\n")
    for uuid, name, driver in (("u", "sda1", "ahci"), ("u", "sdb1", "nvme"), ("v", "sdc1", "usb-storage")):
        folder = tmp_path / "sys/fs/btrfs" / uuid / "devices"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(disk(tmp_path, f"pci/{name}/block/{name}", driver))
    (use,) = read_uses(str(tmp_path))
    assert use.modules == {"ahci", "nvme"}


def test_an_nvme_disk_of_several_paths_hangs_on_their_controllers(tmp_path: Path) -> None:
    controller = disk(tmp_path, "pci/one/nvme/nvme0", "nvme")
    subsystem = tmp_path / "sys/devices/virtual/nvme-subsystem/nvme-subsys0"
    (subsystem / "nvme0n1").mkdir(parents=True)
    (subsystem / "nvme0").symlink_to(controller)
    write(tmp_path / "proc/self/mountinfo", "1 0 253:0 / / rw - ext4 /dev/x rw\n")
    (tmp_path / "sys/dev/block").mkdir(parents=True)
    (tmp_path / "sys/dev/block/253:0").symlink_to(subsystem / "nvme0n1")
    (use,) = read_uses(str(tmp_path))
    assert use.modules == {"nvme"}


def test_a_partition_hangs_on_the_array_or_loop_that_it_is_part_of(tmp_path: Path) -> None:
    """A device of another kind whose name begins alike is no array."""
    write(tmp_path / "sys/devices/virtual/block/md0/md/level", "raid1\n")
    place = tmp_path / "sys/devices/virtual/block/md0/md0p1"
    place.mkdir()
    mounted(tmp_path, "md0/md0p1")
    assert read_uses(str(tmp_path))[0].modules == {"md_mod", "raid1"}
    disk(tmp_path, "ramctl/one/block/sda", "ahci")
    (tmp_path / "sys/dev/block/253:0").unlink()
    (tmp_path / "sys/dev/block/253:0").symlink_to(tmp_path / "sys/devices/ramctl/one/block/sda")
    assert read_uses(str(tmp_path))[0].modules == {"ahci"}


def test_a_subtype_of_fuse_is_no_name_that_the_kernel_requests(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/mountinfo", "1 0 0:45 / /mnt rw - fuse.sshfs host:/ rw\n")
    assert read_uses(str(tmp_path)) == (Use("mount", "/mnt", frozenset(), ("fs-fuse",)),)


@pytest.mark.parametrize(
    ("kind", "source", "is_asked"),
    [("ext4", "/dev/disk", True), ("fuse.x", "/dev/disk", False), ("nfs", "/srv/disk", False)],
)
def test_only_nodes_in_dev_are_asked_for(tmp_path: Path, kind: str, source: str, is_asked: bool) -> None:
    """By a link that answers with the number of a block device, if this machine has one."""
    found = next((path for path in Path("/dev").iterdir() if path.is_block_device()), None)
    if found is None:
        pytest.skip("no block device")
    number = found.stat().st_rdev
    write(tmp_path / "proc/self/mountinfo", f"1 0 0:45 / / rw - {kind} {source} rw\n")
    for folder in ("dev", "srv"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "disk").symlink_to(found)
    link = tmp_path / f"sys/dev/block/{os.major(number)}:{os.minor(number)}"
    link.parent.mkdir(parents=True)
    link.symlink_to(disk(tmp_path, "pci/one/block/sda", "ahci"))
    assert read_uses(str(tmp_path))[0].modules == ({"ahci"} if is_asked else set())


def test_btrfs_without_a_node_hangs_on_the_disks_of_all(tmp_path: Path) -> None:
    """As for /dev/root; a node that is gone is another."""
    for uuid, name, driver in (("u", "sda1", "ahci"), ("v", "sdc1", "usb_storage")):
        folder = tmp_path / "sys/fs/btrfs" / uuid / "devices"
        folder.mkdir(parents=True)
        (folder / name).symlink_to(disk(tmp_path, f"pci/{name}/block/{name}", driver))
    for source, modules in (("/dev/root", {"ahci", "usb_storage"}), ("/dev/sda1", {"ahci"})):
        write(tmp_path / "proc/self/mountinfo", f"1 0 0:40 / / rw - btrfs {source} rw\n")
        assert read_uses(str(tmp_path))[0].modules == modules


def test_each_of_many_stacked_disks_is_read_once(tmp_path: Path) -> None:
    """Each of 40 layers is made of both disks of the next: 2^40 ways lead to the last."""
    virtual = tmp_path / "sys/devices/virtual/block"
    for layer in range(40):
        for number in (2 * layer, 2 * layer + 1):
            (virtual / f"dm-{number}/slaves").mkdir(parents=True)
            for lower in (2 * layer + 2, 2 * layer + 3):
                (virtual / f"dm-{number}/slaves/dm-{lower}").symlink_to(f"../../dm-{lower}")
    (virtual / "dm-80").mkdir()
    write(virtual / "dm-81/dm/uuid", "CRYPT-LUKS2-1-x\n")
    mounted(tmp_path, "dm-0")
    assert read_uses(str(tmp_path))[0].modules == {"dm_mod", "dm_crypt"}


@pytest.mark.parametrize(
    ("path", "file", "content", "modules"),
    [
        (
            "platform/host2/session1/target/block/sda",
            "platform/host2/scsi_host/host2/proc_name",
            "iscsi_tcp",
            "iscsi_tcp",
        ),
        ("platform/host2/session1/target/block/sda", "platform/host2/scsi_host/host2/proc_name", "<NULL>", ""),
        ("virtual/nvme-fabrics/ctl/nvme0/nvme0n1", "virtual/nvme-fabrics/ctl/nvme0/transport", "tcp", "nvme_tcp"),
        ("virtual/nvme-fabrics/ctl/nvme0/nvme0n1", "virtual/nvme-fabrics/ctl/nvme0/transport", "pcie", ""),
    ],
)
def test_a_disk_of_the_network_hangs_on_its_transport(
    tmp_path: Path, path: str, file: str, content: str, modules: str
) -> None:
    """It has no driver on a bus. The controls have no name, and the transport of a driver."""
    write(tmp_path / "sys/devices" / file, f"{content}\n")
    (tmp_path / "sys/devices" / path).mkdir(parents=True)
    mounted(tmp_path, "sda")
    (tmp_path / "sys/dev/block/253:0").unlink()
    (tmp_path / "sys/dev/block/253:0").symlink_to(tmp_path / "sys/devices" / path)
    assert read_uses(str(tmp_path))[0].modules == ({modules} if modules else set())
