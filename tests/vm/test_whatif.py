"""`kmodd whatif` and the truth: the image of which it says that root's disk lacks a driver does not boot.

The images are of update-initramfs, from Debian's kernel and from one whose package lacks the driver.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import trees
from tests.image_maker import ImageMaker, image_maker
from tests.vm import VmError
from tests.vm.image import INITRD_MODULES, Image
from tests.vm.machine import Machine
from tests.vm.payload import Payload, copy_into

pytestmark = [pytest.mark.vm, pytest.mark.root, pytest.mark.long, pytest.mark.timeout(1800)]

DRIVER = "virtio_blk"
ROOT = "root=/dev/vda rootfstype=ext4 rw"
"""For the kernel's command line, as a boot loader has it."""


@dataclass(frozen=True)
class Images:
    """An image with all that root's disk needs, one without the driver, and the indexes of that one's tree."""

    good: Path
    lacking: Path
    indexes: tuple[Path, ...]


@pytest.fixture(scope="module")
def images(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Images:
    folder = tmp_path_factory.mktemp("images")
    kernel, lacking = trees.suite_tree(image.suite), folder / "lacking"
    subprocess.run(["cp", "-a", "--reflink=auto", str(kernel), str(lacking)], check=True)
    (driver,) = trees.module_dir(lacking).glob(f"kernel/drivers/block/{DRIVER}.ko*")
    driver.unlink()
    subprocess.run(["depmod", "-b", str(lacking), image.release], check=True)
    with image_maker(image.suite, kernel) as maker:
        good = _made(maker, folder / "good.img")
        return Images(
            good,
            _made(ImageMaker(maker.root, lacking), folder / "lacking.img"),
            tuple(path for path in trees.module_dir(lacking).glob("modules.*") if path.is_file()),
        )


def _made(maker: ImageMaker, target: Path) -> Path:
    """Move the image that update-initramfs makes to the target; it has the modules of the harness's own initrd."""
    text = "".join(f"{name}\n" for name in INITRD_MODULES)
    (maker.root / "etc/initramfs-tools/modules").write_text(text)
    (maker.root / "etc/initramfs-tools/conf.d/modules").write_text("MODULES=list\n")
    maker.call(f"update-initramfs -c -k {maker.release}")
    return (maker.root / f"boot/initrd.img-{maker.release}").rename(target)


@pytest.fixture(scope="module")
def guest(image: Image, images: Images, boot: Callable[..., AbstractContextManager[Machine]]) -> Iterator[Machine]:
    """A machine that the good image has started, with both images, and the other kernel in /srv/lacking."""
    tree = f"/srv/lacking/usr/lib/modules/{image.release}"

    def prepare(payload: Payload) -> None:
        for path in (images.good, images.lacking):
            copy_into(payload, path, f"/srv/{path.name}")
        for path in images.indexes:
            copy_into(payload, path, f"{tree}/{path.name}")

    with boot(
        "the guest of a good image", append=ROOT, prepare=prepare, initrd=images.good, boot_timeout=900
    ) as machine:
        machine.check(f"cp -al /usr/lib/modules/{image.release}/kernel {tree}/", 300)
        machine.check(f"rm {tree}/kernel/drivers/block/{DRIVER}.ko*")
        yield machine


def test_the_good_image_brings_the_disk(guest: Machine) -> None:
    """The driver is a module, and that image has loaded it."""
    assert guest.check("findmnt --noheadings --output SOURCE /").strip() == "/dev/vda"
    (load,) = (load for load in guest.module_loads() if load.module == DRIVER)
    assert load.in_initrd
    assert load.comm != "kmodd-loader"


def test_a_kernel_without_the_driver_is_caught(guest: Machine) -> None:
    """The text names the disk and the module. Control: the kernel that runs, with its image."""
    ran = guest.run("kmodd whatif --tree /srv/lacking --initrd /srv/lacking.img", 300)
    assert ran.status == 1, ran.output
    (row,) = (line for line in ran.output.splitlines() if DRIVER in line and " lost " in line)
    assert row.startswith("virtio virtio"), ran.output
    lack = f"The module tree of {guest.image.release} lacks {DRIVER}, on which the file system at / hangs"
    assert ran.output.splitlines()[-1] == lack, ran.output
    good = guest.run(f"kmodd whatif --kernel {guest.image.release} --initrd /srv/good.img", 300)
    assert good.status == 0, good.output


def test_an_image_without_the_driver_is_caught(guest: Machine) -> None:
    """Of a kernel that has it."""
    ran = guest.run(f"kmodd whatif --lost --json --kernel {guest.image.release} --initrd /srv/lacking.img", 300)
    assert ran.status == 1, ran.output
    (lack,) = map(json.loads, ran.output.splitlines())
    assert lack == {"needed_by": "the file system at /", "lacking": [DRIVER], "where": "/srv/lacking.img"}


def test_the_image_without_the_driver_does_not_boot(image: Image, images: Images, tmp_path: Path) -> None:
    """On the same machine, by the same command line. Control: the guest of the other tests."""
    payload = Payload.new(tmp_path / "payload")
    with (
        pytest.raises(VmError) as caught,
        Machine(image, payload, append=ROOT, initrd=images.lacking, boot_timeout=900),
    ):
        pass
    said = str(caught.value)
    assert "ALERT!  /dev/vda does not exist." in said, said
