"""Initial ramdisks in bytes: archives of cpio's newc format, how they are compressed, and unified kernel images."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable, Iterable

import zstandard

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "zstd": zstandard.ZstdCompressor().compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
}
"""Format → what compresses into it."""


def entry(
    name: str, data: bytes = b"", mode: int = 0o100644, *, magic: str = "070701", size: int | None = None
) -> bytes:
    """One file of an archive. size: what its header says, by default the truth."""
    raw = name.encode("utf-8", "surrogateescape") + b"\0"
    numbers = (1, mode, 0, 0, 1, 0, len(data) if size is None else size, 0, 0, 0, 0, len(raw), 0)
    head = magic.encode() + b"".join(b"%08X" % number for number in numbers) + raw
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


TRAILER = entry("TRAILER!!!", mode=0)


def archive(*names: str, data: bytes = b"x", magic: str = "070701") -> bytes:
    """An archive of files."""
    return b"".join(entry(name, data, magic=magic) for name in names) + TRAILER


MICROCODE = archive("kernel/x86/microcode/GenuineIntel.bin", data=bytes(5000)) + bytes(512)
"""What precedes the compressed archive on many machines."""


def tree(release: str, modules: Iterable[str]) -> list[str]:
    """The names of the files of a module tree: modules and modules.dep."""
    top = f"usr/lib/modules/{release}"
    return [f"{top}/modules.dep", *(f"{top}/kernel/{module}.ko.xz" for module in modules)]


def unified(*sections: tuple[str, bytes]) -> bytes:
    """A unified kernel image with sections, at multiples of 512 and filled up to these, as ukify makes it."""
    head = b"MZ" + bytes(58) + (64).to_bytes(4, "little")
    head += struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, len(sections), 0, 0, 0, 240, 0x22E) + bytes(240)
    at = -(-(len(head) + 40 * len(sections)) // 512) * 512
    body = b""
    for name, data in sections:
        filled = -(-len(data) // 512) * 512
        place = (len(data), 0x10000 + at, filled, at + len(body))
        head += struct.pack("<8sIIII16x", name.encode(), *place)
        body += data.ljust(filled, b"\0")
    return head.ljust(at, b"\0") + body
