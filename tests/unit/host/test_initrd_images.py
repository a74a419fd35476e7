"""Where images for the start of the machine lie, and which of them carry a module."""

from __future__ import annotations

from pathlib import Path

from kmodd.host.initrd_images import ImagesWith, images_with, initrds_of, unified_images
from tests.initrds import MICROCODE, PACKERS, archive, tree, unified

OWN = ("boot/initrd.img-6.1.0", "boot/initramfs-6.1.0.img", "efi/0123/6.1.0/initrd.img-6.1.0")
UNIFIED = ("boot/efi/EFI/Linux/debian.efi", "efi/EFI/Linux/0123-6.1.0+3.efi")


def test_images_of_a_kernel_are_found_where_each_program_puts_them(tmp_path: Path) -> None:
    """The control is the image of another kernel."""
    for path in (*OWN, *UNIFIED, "boot/initrd.img-6.1.1", "efi/EFI/BOOT/BOOTX64.EFI"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert {*initrds_of("6.1.0", str(tmp_path))} == {f"/{path}" for path in OWN}
    assert {*unified_images(str(tmp_path))} == {f"/{path}" for path in UNIFIED}
    assert initrds_of("6.*", str(tmp_path)) == ()


def test_images_with_a_module_are_found(tmp_path: Path) -> None:
    """Also one that modprobe would not find there. One that is not read is no image without it."""

    def add(path: str, data: bytes) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)

    root = str(tmp_path)
    assert images_with("a", "6.1.0", root) == ImagesWith(False, (), ())
    add(OWN[0], MICROCODE + PACKERS["zstd"](archive(*tree("6.1.0", ["a"])[1:])))
    add(OWN[1], archive(*tree("6.1.0", ["b"])))
    add(UNIFIED[0], unified((".linux", b"x"), (".initrd", PACKERS["xz"](archive(*tree("6.1.0", ["a", "b"]))))))
    add(UNIFIED[1], unified((".linux", b"x"), (".initrd", archive(*tree("6.1.1", ["a"])))))
    assert images_with("a", "6.1.0", root) == ImagesWith(True, (f"/{OWN[0]}", f"/{UNIFIED[0]}"), ())
    add("boot/EFI/Linux/foreign.efi", b"MZ")
    add("boot/EFI/Linux/squash.efi", unified((".initrd", archive("squashfs-root.img"))))
    unread = (
        ("/boot/EFI/Linux/foreign.efi", "offset 0: expected a DOS header: the image is cut off"),
        ("/boot/EFI/Linux/squash.efi", "its files are in squashfs-root.img, which is not read"),
    )
    assert images_with("c", "6.1.0", root) == ImagesWith(True, (), unread)
