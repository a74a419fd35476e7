"""Where images for the start of the machine lie."""

from __future__ import annotations

from pathlib import Path

from kmodd.host.initrd_images import initrds_of, unified_images

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
