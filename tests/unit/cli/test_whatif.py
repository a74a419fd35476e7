"""`kmodd whatif`: what another kernel, and its initial ramdisk, have for the devices and disks of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kmodd.cli.whatif import main
from tests import program
from tests.initrds import MICROCODE, PACKERS, archive, tree
from tests.rootfs import Said
from tests.world import RELEASE, World

OTHER = "6.2.0-other"


class Machine:
    """A machine below a folder: its running kernel has ext4, disk (needs bus) and net, each with its device."""

    def __init__(self, world: World) -> None:
        self.root = world.root
        world.add_files("ext4", "jbd2", "disk", "bus", "net")
        world.index(deps=self.deps(), aliases=self.aliases())
        (self.root / "proc/sys/kernel").mkdir(parents=True)
        (self.root / "proc/sys/kernel/osrelease").write_text(f"{RELEASE}\n")
        self.device("0000:00:01.0", "pci:v1", "disk")
        self.device("0000:00:02.0", "pci:v2", "net")
        self.device("0000:00:03.0", "pci:v3", "")
        self.mount("0000:00:01.0")

    @staticmethod
    def deps() -> list[str]:
        return ["ext4.ko: jbd2.ko", "jbd2.ko:", "disk.ko: bus.ko", "bus.ko:", "net.ko:"]

    @staticmethod
    def aliases() -> list[str]:
        return ["alias fs-ext4 ext4", "alias pci:v1* disk", "alias pci:v2* net"]

    def device(self, name: str, alias: str, driver: str) -> None:
        folder = self.root / "sys/devices" / name
        folder.mkdir(parents=True)
        (folder / "modalias").write_text(f"{alias}\n")
        bus = self.root / "sys/bus/pci"
        (bus / "devices").mkdir(parents=True, exist_ok=True)
        (bus / "devices" / name).symlink_to(f"../../../devices/{name}")
        if driver:
            (self.root / "sys/module" / driver).mkdir(parents=True)
            (bus / "drivers" / driver).mkdir(parents=True)
            (bus / "drivers" / driver / "module").symlink_to(self.root / "sys/module" / driver)
            (folder / "driver").symlink_to(bus / "drivers" / driver)

    def mount(self, device: str) -> None:
        """Its root file system is ext4 on a disk of a device."""
        (self.root / "proc/self").mkdir(exist_ok=True)
        (self.root / "proc/self/mountinfo").write_text("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n")
        disk = self.root / "sys/devices" / device / "block/sda"
        disk.mkdir(parents=True)
        (self.root / "sys/dev/block").mkdir(parents=True, exist_ok=True)
        (self.root / "sys/dev/block/8:1").symlink_to(disk)

    def other(self, deps: list[str], aliases: list[str], builtin: str = "", place: str = "") -> Path:
        """Another kernel's tree, with a file for each module."""
        folder = self.root / place / "lib/modules" / OTHER
        folder.mkdir(parents=True)
        (folder / "modules.dep").write_text("".join(f"{line}\n" for line in deps))
        (folder / "modules.alias").write_text("".join(f"{line}\n" for line in aliases))
        (folder / "modules.builtin").write_text(builtin)
        for line in deps:
            (folder / line.partition(":")[0]).write_bytes(b"\x7fELF")
        return folder

    def image(self, *modules: str, release: str = OTHER) -> str:
        path = self.root / "initrd.img"
        path.write_bytes(MICROCODE + PACKERS["zstd"](archive(*tree(release, modules))))
        return str(path)


@pytest.fixture
def machine(world: World) -> Machine:
    return Machine(world)


def run(machine: Machine, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[dict[str, Any]], str]:
    """The status, the objects and the messages."""
    status = main(["--json", "--root", str(machine.root), *(words or ("--kernel", OTHER))])
    out, err = capsys.readouterr()
    return status, [json.loads(line) for line in out.splitlines()], err


def states(lines: list[dict[str, Any]]) -> dict[str, str]:
    return {line["path"][-4:]: line["state"] for line in lines if "state" in line}


def lacks(lines: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    return [(line["needed_by"], line["lacking"]) for line in lines if "lacking" in line]


def test_the_same_modules_lose_nothing(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.other(machine.deps(), machine.aliases())
    status, lines, err = run(machine, capsys)
    assert (status, err, lacks(lines)) == (0, "", [])
    assert states(lines) == {"01.0": "same", "02.0": "same", "03.0": "no module"}


def test_a_device_without_a_driver_and_a_disk_without_its_module(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that changed is no loss, if the new module matches the device."""
    machine.other(["ext4.ko:", "other_disk.ko:"], ["alias fs-ext4 ext4", "alias pci:v1* other_disk"])
    status, lines, _ = run(machine, capsys)
    assert (status, states(lines)) == (1, {"01.0": "changed", "02.0": "lost", "03.0": "no module"})
    assert lacks(lines) == []
    assert [(line["now"][0]["module"], line["then"]) for line in lines if line["path"].endswith("02.0")] == [
        ("net", [])
    ]


def test_the_disk_is_named_whose_module_the_tree_lacks(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.other(["net.ko:"], ["alias pci:v2* net", "alias pci:v3* net"])
    status, lines, _ = run(machine, capsys)
    assert (status, states(lines)) == (1, {"01.0": "lost", "02.0": "same", "03.0": "new"})
    assert lacks(lines) == [("the file system at /", ["disk", "ext4"])]


def test_a_driver_built_into_the_other_kernel_is_there(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """Also of a kernel that does not list the aliases of its built-in modules."""
    machine.other(["net.ko:"], ["alias pci:v2* net"], "kernel/disk.ko\nkernel/ext4.ko\n")
    status, lines, _ = run(machine, capsys)
    assert (status, states(lines)["01.0"], lacks(lines)) == (0, "same", [])
    assert run(machine, capsys, "--kernel", OTHER, "--initrd", machine.image())[0] == 0, "nothing is needed from it"


def test_a_driver_that_is_gone_while_a_helper_remains_is_lost(
    machine: Machine, capsys: pytest.CaptureFixture[str], world: World
) -> None:
    world.add_files("generic")
    world.index(deps=[*machine.deps(), "generic.ko:"], aliases=[*machine.aliases(), "alias pci:v* generic"])
    machine.other(
        [*machine.deps()[:-1], "generic.ko:"], ["alias fs-ext4 ext4", "alias pci:v1* disk", "alias pci:v* generic"]
    )
    status, lines, _ = run(machine, capsys)
    assert (status, states(lines)) == (1, {"01.0": "same", "02.0": "lost", "03.0": "same"})


@pytest.mark.parametrize(
    ("modules", "lacking"),
    [
        (("ext4", "jbd2", "disk", "bus"), []),
        (("ext4", "jbd2", "disk", "bus", "net"), []),
        (("ext4", "jbd2"), ["disk", "bus"]),
        (("ext4", "disk", "bus"), ["jbd2"]),
        ((), ["disk", "bus", "ext4", "jbd2"]),
    ],
)
def test_an_image_needs_what_the_root_disk_hangs_on(
    machine: Machine, capsys: pytest.CaptureFixture[str], modules: tuple[str, ...], lacking: list[str]
) -> None:
    """With dependencies, and not the network's module."""
    machine.other(machine.deps(), machine.aliases())
    status, lines, _ = run(machine, capsys, "--kernel", OTHER, "--initrd", machine.image(*modules))
    assert (status, lacks(lines)) == ((1, [("the file system at /", lacking)]) if lacking else (0, []))


@pytest.mark.parametrize(
    ("modules", "lacking"),
    [
        (("ext4", "jbd2", "disk", "bus", "crc_a"), []),
        (("ext4", "jbd2", "disk", "bus", "crc_b", "part"), []),
        (("ext4", "jbd2", "disk", "bus", "crc_b"), ["part"]),
        (("ext4", "jbd2", "disk", "bus"), ["crc_a"]),
        (("ext4", "disk", "bus"), ["jbd2", "crc_a"]),
    ],
)
def test_an_image_needs_what_precedes_a_module_by_a_softdep(
    machine: Machine, capsys: pytest.CaptureFixture[str], modules: tuple[str, ...], lacking: list[str]
) -> None:
    """One of those that it stands for. Not what follows, is built in, or is not in the tree."""
    folder = machine.other(
        [*machine.deps(), "crc_a.ko:", "crc_b.ko: part.ko", "part.ko:", "later.ko:"],
        [*machine.aliases(), "alias crc crc_a", "alias crc crc_b"],
        builtin="kernel/within.ko\n",
    )
    (folder / "modules.softdep").write_text(
        "softdep jbd2 pre: crc within absent post: later\nsoftdep crc_a pre: jbd2\n"
    )
    status, lines, _ = run(machine, capsys, "--kernel", OTHER, "--initrd", machine.image(*modules))
    assert (status, lacks(lines)) == ((1, [("the file system at /", lacking)]) if lacking else (0, []))


@pytest.mark.parametrize(
    ("kind", "route", "modules", "lacking"),
    [
        ("nfs4", "eth0", (), [("the interface eth0, which carries a route", ["net"])]),
        ("nfs4", "eth0", ("net",), []),
        ("nfs4", "eth0 br0", (), []),
        ("nfs4", "", (), []),
        ("tmpfs", "eth0", (), []),
    ],
)
def test_an_image_needs_the_network_of_a_root_on_it(
    machine: Machine,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    route: str,
    modules: tuple[str, ...],
    lacking: list[tuple[str, list[str]]],
) -> None:
    """One interface with a default route suffices; br0 needs none of the modules. A local root needs no network."""
    machine.other(machine.deps(), machine.aliases())
    (machine.root / "proc/self/mountinfo").write_text(f"1 0 0:30 / / rw - {kind} srv:/root rw\n")
    (machine.root / "proc/net").mkdir()
    lines = "".join(f"{name}\t00000000\t01\t0003\n" for name in route.split())
    (machine.root / "proc/net/route").write_text(f"Iface\tDestination\n{lines}")
    (machine.root / "sys/devices/0000:00:02.0/net/eth0").mkdir(parents=True)
    (machine.root / "sys/class/net").mkdir(parents=True)
    (machine.root / "sys/class/net/eth0").symlink_to(machine.root / "sys/devices/0000:00:02.0/net/eth0")
    status, answer, _ = run(machine, capsys, "--kernel", OTHER, "--initrd", machine.image(*modules))
    assert (status, lacks(answer)) == (int(bool(lacking)), lacking)
    main(["--root", str(machine.root), "--kernel", OTHER, "--initrd", machine.image(*modules)])
    said = "lacks net, on which the interface eth0, which carries a route, hangs\n"
    assert (said in capsys.readouterr().out) == bool(lacking)


def test_an_image_of_another_kernel_is_said(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.other(machine.deps(), machine.aliases())
    image = machine.image("ext4", "jbd2", "disk", "bus", release=RELEASE)
    status, _, err = run(machine, capsys, "--kernel", OTHER, "--initrd", image)
    assert (status, f"{image} has no modules of kernel {OTHER}, but of {RELEASE}" in err) == (1, True)
    assert run(machine, capsys, "--kernel", RELEASE, "--initrd", image)[0] == 0, "the control"


def test_an_image_that_cannot_be_read_is_one_line(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.other(machine.deps(), machine.aliases())
    image = machine.root / "image"
    for data, what in ((MICROCODE + b"junk", f"/image: offset {len(MICROCODE)}: "), (MICROCODE[:900], "offset 0: ")):
        image.write_bytes(data if what.startswith("/") else b"\x1f\x8b" + data)
        status, _, err = run(machine, capsys, "--kernel", OTHER, "--initrd", str(image))
        assert (status, err.count("\n"), what in err) == (3, 1, True), err
    image.write_bytes(archive("squash-root.img"))
    status, _, err = run(machine, capsys, "--kernel", OTHER, "--initrd", str(image))
    assert (status, "its files are in squash-root.img, which is not read" in err) == (3, True)


def test_a_tree_by_its_path_or_by_what_it_is_below(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.other(machine.deps(), machine.aliases(), place="mnt")
    for words in (("--tree", "/mnt"), ("--tree", f"/mnt/lib/modules/{OTHER}"), ("--tree", "/mnt", "--kernel", OTHER)):
        status, lines, _ = run(machine, capsys, *words)
        assert (status, states(lines)["01.0"]) == (0, "same"), words
    for line, why in (
        (f"--tree /mnt/lib/modules/{OTHER} --kernel x", f"--tree is that of kernel {OTHER}, not x"),
        ("--tree /proc", "--tree /proc has no lib/modules/RELEASE"),
        ("", "--kernel or --tree is missing"),
        (f"--kernel {OTHER} --devices x --initrd y", "--initrd and --devices exclude each other"),
    ):
        status = main(["--root", str(machine.root), *line.split()])
        assert (status, why in capsys.readouterr().err) == (2, True), line
    assert run(machine, capsys, "--kernel", "none")[0] == 3


def test_without_the_running_kernels_tree_the_drivers_count(
    machine: Machine, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after an upgrade that removed the tree."""
    world.live("disk", "bus", "ext4")
    machine.other(["ext4.ko:", "net.ko:"], ["alias fs-ext4 ext4", "alias pci:v2* net"])
    world.modules.rename(machine.root / "hidden")
    status, lines, err = run(machine, capsys)
    assert "only the drivers that are bound now are known" in err
    assert (status, states(lines)) == (1, {"01.0": "lost", "02.0": "same", "03.0": "no module"})
    assert lacks(lines) == [("the file system at /", ["disk"])]


def test_the_text(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.other(["net.ko:", "x.ko:"], ["alias pci:v2* x", "alias fs-ext4 x"])
    words = ["whatif", "--root", str(machine.root), "--kernel", OTHER, "--initrd", machine.image("net")]
    said = program.run(words)
    assert (said.status, said.err) == (1, b"")
    assert said.out.decode().splitlines() == [
        "DEVICE            NAME  STATE      NOW   THEN",
        "pci 0000:00:01.0  -     lost       disk  -",
        "pci 0000:00:02.0  -     changed    net   x",
        "pci 0000:00:03.0  -     no module  -     -",
        "",
        f"Kernel {OTHER}: 1 device lost, 1 device changed",
        f"The module tree of {OTHER} lacks disk, on which the file system at / hangs",
        f"{machine.root}/initrd.img lacks x, on which the file system at / hangs",
    ]


def test_only_what_is_lost_is_printed(machine: Machine) -> None:
    """Nothing where nothing is lost."""
    folder = machine.other(["ext4.ko:", "jbd2.ko:", "disk.ko:"], ["alias fs-ext4 ext4", "alias pci:v1* disk"])
    words = ["whatif", "--lost", "--root", str(machine.root), "--kernel", OTHER, "--initrd"]
    said = program.run([*words, machine.image("ext4")])
    assert (said.status, said.err) == (1, b"")
    assert said.out.decode().splitlines() == [
        "DEVICE            NAME  STATE  NOW  THEN",
        "pci 0000:00:02.0  -     lost   net  -",
        "",
        f"Kernel {OTHER}: 1 device lost",
        f"{machine.root}/initrd.img lacks disk, on which the file system at / hangs",
    ]
    (folder / "modules.alias").write_text("alias fs-ext4 ext4\nalias pci:v1* disk\nalias pci:v2* jbd2\n")
    assert program.run([*words, machine.image("ext4", "disk")]) == Said(b"", b"", 0)


def test_of_several_images_all_count(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.other(machine.deps(), machine.aliases())
    first = Path(machine.image("ext4", "jbd2")).rename(machine.root / "first")
    words = ["--kernel", OTHER, "--initrd", str(first)]
    assert run(machine, capsys, *words)[0] == 1, "the control"
    assert run(machine, capsys, *words, "--initrd", machine.image("disk", "bus"))[0] == 0


def test_a_recording_in_place_of_the_devices(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """It gives what the machine gave; the root file system's disk is not known from it."""
    machine.other(["net.ko:"], ["alias pci:v2* net"])
    here = run(machine, capsys)
    recording = machine.root / "recording"
    recording.write_bytes(program.run(["record", "--root", str(machine.root)]).out)
    status, lines, err = run(machine, capsys, "--kernel", OTHER, "--devices", str(recording))
    assert (status, states(lines), err) == (here[0], states(here[1]), "")
    assert (lacks(lines), lacks(here[1])) == ([], [("the file system at /", ["disk", "ext4"])])


def test_an_invalid_line_of_a_recording_is_named(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """The other lines count; without any device nothing is known."""
    machine.other(machine.deps(), machine.aliases())
    file = machine.root / "recording"
    file.write_text("P: /devices/x\nE: MODALIAS=pci:v1\nnonsense\nE: SUBSYSTEM=pci\n")
    status, lines, err = run(machine, capsys, "--kernel", OTHER, "--devices", str(file))
    assert (status, [line["subsystem"] for line in lines]) == (0, ["pci"])
    assert err == f"kmodd whatif: {file}:3: expected one of P: N: S: E: A: H: L: and a blank\n"
    for content, why in ((b"", "found no device"), (b"\x7fELF" * 99, ":1: expected one of P:")):
        file.write_bytes(content)
        status, _, err = run(machine, capsys, "--kernel", OTHER, "--devices", str(file))
        assert (status, why in err, err.count("\n")) == (3, True, 1)
    assert run(machine, capsys, "--kernel", OTHER, "--devices", f"{file}.none")[0] == 3
