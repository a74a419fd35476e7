"""What is read of real images, beside lsinitramfs and lsinitrd: those of mkinitramfs, dracut and ukify of Debian 13.

With early microcode in front, compressed by gzip, xz and zstd. The reader is that of `kmodd whatif` and `kmodd deny`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.host.initrd_file import read_initrd_file
from kmodd.host.initrd_images import ImagesWith, images_with
from kmodd.names import module_of_path
from tests import trees
from tests.image_maker import ImageMaker, image_maker

pytestmark = [pytest.mark.differential, pytest.mark.root, pytest.mark.timeout(900)]

PACKAGES = ("initramfs-tools", "dracut-core", "systemd-ukify", "systemd-boot-efi", "kmod", "zstd", "xz-utils")
MODULES = ("virtio_blk", "ext4", "btrfs", "nvme")

_PREPARE = r"""
printf '%s\n' {modules} > /etc/initramfs-tools/modules
echo MODULES=list > /etc/initramfs-tools/conf.d/modules
mkdir -p /lib/firmware/amd-ucode /tmp/early/kernel/x86/microcode
head -c 5000 /dev/zero > /lib/firmware/amd-ucode/microcode_amd.bin
cp /lib/firmware/amd-ucode/microcode_amd.bin /tmp/early/kernel/x86/microcode/AuthenticAMD.bin
cd /tmp/early
find . | cpio --quiet -o -H newc > /tmp/early.cpio
cat > /etc/initramfs-tools/hooks/early << 'END'
#!/bin/sh
[ "$1" != prereqs ] || exit 0
. /usr/share/initramfs-tools/hook-functions
prepend_earlyinitramfs /tmp/early.cpio
END
chmod 755 /etc/initramfs-tools/hooks/early
"""
"""The modules that mkinitramfs is to put in, and microcode, as the packages with it do."""

_DRACUT = "dracut --no-hostonly --early-microcode --{compression} --modules 'base kernel-modules' --drivers '{modules}'"
_MAKE = {
    "mkinitramfs-gzip": "mkinitramfs -c gzip -o {path} {release}",
    "mkinitramfs-zstd": "mkinitramfs -c zstd -o {path} {release}",
    "dracut-xz": _DRACUT + " {path} {release}",
    "dracut-zstd": _DRACUT + " {path} {release}",
}
"""How an image is made, by its name."""


@pytest.fixture(scope="module")
def maker() -> Iterator[ImageMaker]:
    with trees.may_be_away(), image_maker("trixie", trees.suite_tree("trixie"), PACKAGES) as made:
        made.call(_PREPARE.format(modules=" ".join(MODULES)))
        yield made


def made_image(maker: ImageMaker, name: str) -> str:
    """Make an image, once; return its path in the chroot."""
    path = f"/tmp/{name}.img"
    if not (maker.root / path[1:]).exists():
        words = {"compression": name.partition("-")[2], "modules": " ".join(MODULES)}
        maker.call(_MAKE[name].format(path=path, release=maker.release, **words))
    return path


def listed(maker: ImageMaker, name: str, path: str) -> set[str]:
    """The modules of an image, by the program that belongs to its maker."""
    program = "lsinitrd" if name.startswith("dracut") else "lsinitramfs"
    paths = [line.split()[-1] for line in maker.call(f"{program} {path}").splitlines() if line]
    inside = [path for path in paths if f"lib/modules/{maker.release}/" in path and ".ko" in Path(path).name]
    return {module_of_path(path) for path in inside}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name.endswith("zstd") else pytest.mark.long) for name in _MAKE],
)
def test_the_modules_are_those_that_the_makers_program_lists(maker: ImageMaker, name: str) -> None:
    path = made_image(maker, name)
    assert (maker.root / path[1:]).read_bytes().startswith(b"070701"), "microcode in front"
    theirs = listed(maker, name, path)
    assert theirs > {*MODULES}
    found = read_initrd_file(f"{maker.root}{path}")
    assert found.modules == {maker.release: theirs}
    assert found.of(maker.release) == theirs


@pytest.mark.parametrize("name", ["mkinitramfs-zstd", "dracut-zstd"])
def test_an_image_has_all_softdeps_of_its_modules(maker: ImageMaker, name: str) -> None:
    """Those that kmod's modprobe would load, which is why `kmodd whatif` asks for them. Control: they are needed."""
    path = made_image(maker, name)
    theirs = listed(maker, name, path)
    loads = maker.call(f"modprobe -S {maker.release} -a -D {' '.join(MODULES)}").splitlines()
    needed = {module_of_path(line.split()[1]) for line in loads if line.startswith("insmod ")}
    assert needed <= theirs
    dep = (trees.module_dir(maker.kernel) / "modules.dep").read_text().splitlines()
    deps = {str(module_of_path(line.partition(":")[0])): line.partition(":")[2].split() for line in dep}
    assert needed - {*MODULES} - {module_of_path(each) for module in MODULES for each in deps[module]}


def test_a_unified_image_has_the_modules_of_its_initrd(maker: ImageMaker) -> None:
    """Of ukify, where kernel-install puts it; `kmodd deny` finds it. Control: a module that it has not."""
    path, unified = made_image(maker, "mkinitramfs-zstd"), "/boot/efi/EFI/Linux/debian.efi"
    maker.call(
        f"mkdir -p /boot/efi/EFI/Linux; ukify build --linux=/boot/vmlinuz-{maker.release} --initrd={path} "
        f"--uname={maker.release} --cmdline='root=/dev/vda' --output={unified}"
    )
    root = str(maker.root)
    assert read_initrd_file(root + unified) == read_initrd_file(root + path)
    assert images_with("btrfs", maker.release, root) == ImagesWith(True, (unified,), ())
    assert images_with("e1000e", maker.release, root) == ImagesWith(True, (), ())
    maker.call(f"cd /boot/efi/EFI/Linux; head -c 1M {unified} > cut.efi")
    ((cut, why),) = images_with("btrfs", maker.release, root).unread
    assert cut == "/boot/efi/EFI/Linux/cut.efi"
    assert why.endswith("bytes of the section .initrd: the image is cut off")
