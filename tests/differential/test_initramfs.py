"""Debian's own `update-initramfs` on our tools, beside the same on kmod's: its words, its status, the initrd's files.

A chroot of Debian 12 with initramfs-tools and the stock kernel makes its initrd three times: with kmod as it came; with
`make install` and our tools under the usual names, and kmod's program not executable, so that nothing can fall back
to it; and with a modprobe that fails, which must be seen. Takes one to two minutes: ours starts Python for each module.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from kmodd.index.bin_reader import BinIndex
from tests import trees
from tests.image_maker import ImageMaker, image_maker
from tests.rootfs import Said
from tests.tool import difference

pytestmark = [pytest.mark.differential, pytest.mark.root, pytest.mark.long, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).parents[2]
TOOLS = ("modprobe", "insmod", "rmmod", "lsmod", "modinfo", "depmod")
ADDED = {"usr/lib/modules/{release}/modules.weakdep": "written as kmod 34 does (docs/COMPAT.md)"}
"""Files that only our initrd has → why."""


@dataclass(frozen=True, slots=True)
class Initrd:
    """Output of `update-initramfs`, and the initrd."""

    said: Said
    listed: list[str]
    """The names that lsinitramfs prints, sorted."""
    files: Mapping[str, str]
    """Path → a link's target, a file's hash, or its kind."""
    modprobe: Said
    """Output of the initrd's modprobe about ext4, run in the initrd."""


class Machine(ImageMaker):
    """The chroot."""

    def update(self, how: str) -> Initrd:
        """Run `update-initramfs -c` or `-u`; the result. The kmod in it becomes executable again, to be asked."""
        said = self.run(f"update-initramfs {how} -k {self.release}")
        initrd = f"/boot/initrd.img-{self.release}"
        listed = self.call(f"lsinitramfs {initrd}").split()
        self.call(f"rm -rf /tmp/made && unmkinitramfs {initrd} /tmp/made")
        files = _files(self.root / "tmp" / "made")
        ask = f"chmod 755 /tmp/made/usr/bin/kmod; chroot /tmp/made /sbin/modprobe -S {self.release} -D ext4"
        return Initrd(said, sorted(listed), files, self.run(ask))

    def take_over(self) -> None:
        """Install kmodd's tools under the usual names, and make kmod's program not executable."""
        subprocess.run(
            ["make", "install", f"DESTDIR={self.root}"], cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=True
        )
        for tool in TOOLS:
            self.call(f"mv /usr/sbin/{tool} /usr/sbin/{tool}.kmod; ln -s ../lib/kmodd/bin/{tool} /usr/sbin/{tool}")
        self.call("chmod a-x /usr/bin/kmod")

    def break_modprobe(self) -> None:
        """/bin/false in the place of modprobe."""
        self.call("ln -sf /bin/false /usr/sbin/modprobe")


def _files(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for where, folders, names in os.walk(folder):
        for path in (Path(where, name) for name in (*folders, *names)):
            if path.is_symlink():
                what = f"link to {path.readlink()}"
            elif path.name.startswith("modules.") and path.suffix == ".bin":
                what = repr(list(BinIndex(path.read_bytes(), path.name).entries()))  # in the layout of 30, or of 34
            elif path.is_file():
                what = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                what = "folder" if path.is_dir() else f"device {path.stat().st_rdev}"
            found[str(path.relative_to(folder))] = what
    return found


def compare(peers: Initrd, own: Initrd, release: str) -> list[str]:
    """Every difference of the two, but those of ADDED; each of these must be there."""
    added = {name.format(release=release) for name in ADDED}
    found = [difference(peers.said, own.said), difference(peers.modprobe, own.modprobe)]
    names = set(peers.listed) ^ set(own.listed)
    found += [f"listed in one only: {name}" for name in sorted(names ^ added)]
    for name in sorted(peers.files.keys() | own.files.keys()):
        theirs, mine = peers.files.get(name, "absent"), own.files.get(name, "absent")
        if theirs != mine and name not in added:
            found.append(f"{name}: with kmod {theirs}, with kmodd {mine}")
    return [words for words in found if words]


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with image_maker("bookworm", trees.debian_tree("6.1-amd64")) as maker:
        yield Machine(maker.root, maker.kernel)


@pytest.fixture(scope="module")
def theirs(machine: Machine) -> Initrd:
    made = machine.update("-c")
    assert made.said.status == 0, made.said
    assert f"usr/lib/modules/{machine.release}/modules.dep" in made.listed
    assert sum(".ko" in name for name in made.listed) > 500
    assert made.modprobe.out.endswith(b"/ext4.ko \n"), made.modprobe
    return made


@pytest.fixture(scope="module")
def ours(machine: Machine, theirs: Initrd) -> Initrd:
    """After `theirs`, on the same machine."""
    machine.take_over()
    return machine.update("-u")


@pytest.fixture(scope="module")
def broken(machine: Machine, ours: Initrd) -> Initrd:
    """After `ours`, on the same machine."""
    machine.break_modprobe()
    return machine.update("-u")


def test_update_initramfs_runs_on_our_tools(machine: Machine, theirs: Initrd, ours: Initrd) -> None:
    assert ours.said.status == 0, ours.said
    found = compare(theirs, ours, machine.release)
    assert not found, "\n".join(found[:40])


def test_control_a_broken_modprobe_is_seen(machine: Machine, theirs: Initrd, broken: Initrd) -> None:
    found = compare(theirs, broken, machine.release)
    assert any(words.startswith("listed in one only: usr/lib/modules/") and ".ko" in words for words in found), found
    assert machine.run("modprobe -V").status == 1


def test_nothing_but_our_tools_could_run(machine: Machine, ours: Initrd) -> None:
    """kmod's program, by its own name and by every name that it was moved to, cannot be executed."""
    for tool in ("kmod", *(f"/usr/sbin/{tool}.kmod" for tool in TOOLS)):
        assert b"Permission denied" in machine.run(f"{tool} --version").err, tool
    for tool in TOOLS:
        if tool != "modprobe":  # the control's
            assert machine.run(f"readlink -f /sbin/{tool}").out == b"/usr/bin/kmodd\n"
