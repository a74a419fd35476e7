"""Find the images of a kernel that carry modules for the start of the machine."""

from __future__ import annotations

import glob

_INITRDS = (
    "/boot/initrd.img-{}", "/boot/initramfs-{}.img", "/boot/*/{}/initrd*", "/efi/*/{}/initrd*",
    "/boot/efi/*/{}/initrd*",
)  # fmt: skip
"""Where initramfs-tools, dracut and kernel-install (the layout `bls`) put initrds."""
_UNIFIED = ("/boot/EFI/Linux/*.efi", "/efi/EFI/Linux/*.efi", "/boot/efi/EFI/Linux/*.efi")
"""Where the Boot Loader Specification has unified kernel images (UKI), which carry an initrd in a section."""


def initrds_of(release: str, root: str = "") -> tuple[str, ...]:
    """Return the paths of the initrds of a kernel, sorted, without root."""
    return _found([pattern.format(glob.escape(release)) for pattern in _INITRDS], root)


def unified_images(root: str = "") -> tuple[str, ...]:
    """Return the paths of all unified kernel images, sorted, without root; their names need not tell the release."""
    return _found(_UNIFIED, root)


def _found(patterns: list[str] | tuple[str, ...], root: str) -> tuple[str, ...]:
    paths = {path for pattern in patterns for path in glob.glob(glob.escape(root) + pattern)}
    return tuple(sorted(path.removeprefix(root) for path in paths))
