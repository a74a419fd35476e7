"""Find the images of a kernel that carry modules for the start of the machine, and those with one module."""

from __future__ import annotations

import glob
from functools import lru_cache

from kmodd.dataclass import dataclass
from kmodd.errors import ParseError
from kmodd.host.initrd_file import read_initrd_file

_INITRDS = (
    "/boot/initrd.img-{}", "/boot/initramfs-{}.img", "/boot/*/{}/initrd*", "/efi/*/{}/initrd*",
    "/boot/efi/*/{}/initrd*",
)  # fmt: skip
"""Where initramfs-tools, dracut and kernel-install (the layout `bls`) put initrds."""
_UNIFIED = ("/boot/EFI/Linux/*.efi", "/efi/EFI/Linux/*.efi", "/boot/efi/EFI/Linux/*.efi")
"""Where the Boot Loader Specification has unified kernel images (UKI), which carry an initrd in a section."""


@dataclass(frozen=True, slots=True)
class ImagesWith:
    """Which images of a kernel have a module. Paths are without root."""

    has_images: bool
    """Whether there are images, of whatever content."""
    carrying: tuple[str, ...]
    """Those that have the module."""
    unread: tuple[tuple[str, str], ...]
    """Those that cannot be read, each with why."""


def images_with(module: str, release: str, root: str = "") -> ImagesWith:
    """Return the images of a kernel that have a module, whether or not modprobe would find it there.

    Unified kernel images of every kernel are read, as their names need not tell the release.
    """
    images = (*initrds_of(release, root), *unified_images(root))
    carrying, unread = [], []
    for path in images:
        found = _modules_of(f"{root}{path}", release)
        if isinstance(found, str):
            unread.append((path, found))
        elif module in found:
            carrying.append(path)
    return ImagesWith(bool(images), tuple(carrying), tuple(unread))


@lru_cache(maxsize=32)
def _modules_of(path: str, release: str) -> frozenset[str] | str:
    """Return the modules of a kernel in an image, which is read once for all names; a text: why it cannot be read."""
    try:
        image = read_initrd_file(path)
    except ParseError as error:
        return str(error).removeprefix(f"{path}: ")
    if image.nested:
        return f"its files are in {image.nested}, which is not read"
    return image.modules.get(release, frozenset())


def initrds_of(release: str, root: str = "") -> tuple[str, ...]:
    """Return the paths of the initrds of a kernel, sorted, without root."""
    return _found([pattern.format(glob.escape(release)) for pattern in _INITRDS], root)


def unified_images(root: str = "") -> tuple[str, ...]:
    """Return the paths of all unified kernel images, sorted, without root; their names need not tell the release."""
    return _found(_UNIFIED, root)


def _found(patterns: list[str] | tuple[str, ...], root: str) -> tuple[str, ...]:
    paths = {path for pattern in patterns for path in glob.glob(glob.escape(root) + pattern)}
    return tuple(sorted(path.removeprefix(root) for path in paths))
