"""Initial ramdisks that `update-initramfs -u` and dracut make with kmodd's tools in place, and a boot from each.

The package is installed in a chroot, then all six tools are linked to kmodd's. What is in the images is kmod's own
program, by its hash; in the guest, the kernel's trace says that it was this program that loaded the modules there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests import trees
from tests.image_maker import PACKAGES, ImageMaker, image_maker
from tests.vm.devices import DEVICES
from tests.vm.image import INITRD_MODULES, Image
from tests.vm.machine import Machine
from tests.vm.packages import build
from tests.vm.scenario import plug

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.long, pytest.mark.timeout(2400)]

NEEDED = ("dracut-core", "systemd", "python3-systemd", "python3-pyudev")
"""Beside what an image is made with: dracut, and what kmodd's package depends on."""
TOOLS = ("modprobe", "insmod", "rmmod", "lsmod", "modinfo", "depmod")
FOLDERS = ("sbin", "bin", "usr/sbin", "usr/bin")
MADE = "tmp/made"
HOOKS = ("usr/share/initramfs-tools/hooks/kmodd", "usr/lib/dracut/modules.d/99kmodd/module-setup.sh")
ROOT = "root=/dev/vda rootfstype=ext4 rw"
"""For the kernel's command line, as a boot loader has it."""
MAKERS = {
    "update-initramfs": "update-initramfs -u -k {release}",
    "dracut": "dracut --force --no-hostonly --drivers '{modules}' /boot/initrd.img-{release} {release}",
    "dracut-modules": "dracut --force --no-hostonly --modules 'base' --drivers '{modules}'"
    " /boot/initrd.img-{release} {release}",
}
"""The last one names the modules of dracut that it wants, as some do in dracut.conf."""


class Maker(ImageMaker):
    """The chroot, in which kmodd's package can be installed."""

    def make(self, how: str, hooks: bool = True) -> Path:
        """Make an image; return it. It is unpacked in MADE. Without `hooks`, those of kmodd are empty."""
        command = MAKERS[how].format(release=self.release, modules=" ".join(INITRD_MODULES))
        image, log = f"/boot/initrd.img-{self.release}", ">/tmp/log 2>&1 || { cat /tmp/log >&2; exit 1; }"
        kept = {} if hooks else {path: (self.root / path).read_bytes() for path in HOOKS}
        for path in kept:
            (self.root / path).write_bytes(b"")
        self.call(f"{command} {log}")
        for path, script in kept.items():
            (self.root / path).write_bytes(script)
        early = f"rm -rf /{MADE}/early; mv /{MADE}/main/* /{MADE}/"  # of one that begins with microcode
        self.call(f"rm -rf /{MADE}; unmkinitramfs {image} /{MADE}; [ ! -d /{MADE}/main ] || {{ {early}; }}")
        return self.root / image.lstrip("/")

    def programs(self) -> dict[str, str]:
        """Tools in the unpacked image, by each path → the hash of what is executed there, or where it leads."""
        found = {}
        for path in (f"{folder}/{tool}" for folder in FOLDERS for tool in TOOLS):
            if os.path.lexists(self.root / MADE / path):
                target = _followed(self.root / MADE, path)
                found[path] = _hash(target) if target.is_file() else str(target)
        return found


def _followed(root: Path, path: str) -> Path:
    """Follow links as a program does whose root directory is `root`."""
    done, rest = root, path.split("/")
    for _ in range(40):
        if not rest:
            break
        name = rest.pop(0)
        here = done.parent if name == ".." else done / name
        if here.is_symlink():
            target = str(here.readlink())
            done, rest = (root if target.startswith("/") else done), [*target.strip("/").split("/"), *rest]
        else:
            done = here
    return done


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def maker(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Maker]:
    """The package is installed; there is an image from before."""
    (package,) = build(image.suite, tmp_path_factory.mktemp("packages"), "0.1.0")
    with image_maker(image.suite, trees.suite_tree(image.suite), (*PACKAGES, *NEEDED)) as made:
        it = Maker(made.root, made.kernel)
        (it.root / "etc/initramfs-tools/modules").write_text("".join(f"{name}\n" for name in INITRD_MODULES))
        (it.root / "etc/initramfs-tools/conf.d/modules").write_text("MODULES=list\n")
        it.call(f"update-initramfs -c -k {it.release}")
        (it.root / "root/kmodd.deb").write_bytes(package.read_bytes())
        it.call("DPKG_FORCE=unsafe-io dpkg --install /root/kmodd.deb >/tmp/log 2>&1 || { cat /tmp/log >&2; exit 1; }")
        yield it


def check_tools(maker: Maker, how: str) -> None:
    """Every tool in an image is kmod's, and nothing of kmodd is in it. The control is an image without our hooks."""
    kmods = _hash(maker.root / "usr/bin/kmod")
    klibcs = _hash(maker.root / "usr/lib/klibc/bin/insmod")  # initramfs-tools puts it in bin
    maker.make(how)
    programs = maker.programs()
    assert {"sbin/modprobe", "usr/sbin/modprobe"} <= programs.keys()
    assert set(programs.values()) - {klibcs} == {kmods}, programs
    assert maker.call(f"chroot /{MADE} /sbin/modprobe --version").startswith("kmod version ")
    assert maker.call(f"find /{MADE} -name '*kmodd*' -o -name 'modprobe.kmod*'") == ""
    maker.make(how, hooks=False)
    assert maker.programs()["sbin/modprobe"] != kmods


@pytest.mark.parametrize("how", MAKERS)
def test_with_the_package_every_tool_is_kmods(maker: Maker, how: str) -> None:
    """In place of modprobe is the helper."""
    check_tools(maker, how)


@pytest.fixture(scope="module")
def replaced(maker: Maker) -> Maker:
    """Then all tools are linked to kmodd's."""
    for tool in TOOLS:
        maker.call(f"rm /usr/sbin/{tool}; ln -s ../lib/kmodd/bin/{tool} /usr/sbin/{tool}")
    maker.call("rm -f /usr/bin/lsmod; ln -s ../lib/kmodd/bin/lsmod /usr/bin/lsmod")
    assert maker.call("modprobe --version").splitlines()[1:] != maker.call("kmod --version").splitlines()[1:]
    return maker


@pytest.mark.parametrize("how", MAKERS)
def test_with_kmodds_tools_in_place_every_tool_is_kmods(replaced: Maker, how: str) -> None:
    check_tools(replaced, how)


@pytest.fixture(scope="module", params=["update-initramfs", "dracut"])
def guest(
    replaced: Maker,
    request: pytest.FixtureRequest,
    boot: Callable[..., AbstractContextManager[Machine]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Machine]:
    """A machine that such an image has started."""
    made = tmp_path_factory.mktemp("image") / "initrd.img"
    shutil.move(replaced.make(request.param), made)
    with boot(f"the guest of {request.param}", with_kmod=True, append=ROOT, initrd=made, boot_timeout=900) as machine:
        yield machine


def test_a_machine_boots_from_the_image(guest: Machine) -> None:
    """Root's file system was loaded by kmod's modprobe there; kmodd loads what comes afterwards."""
    assert guest.check("findmnt --noheadings --output SOURCE /").strip() == "/dev/vda"
    loads = {load.module: load for load in guest.module_loads()}
    assert loads["virtio_blk"].in_initrd
    assert loads["ext4"].in_initrd
    assert loads["ext4"].comm == "modprobe"
    assert plug(guest, DEVICES["virtio-rng-pci"]).faults() == []
