"""Read the initial ramdisk in a unified kernel image: the section .initrd of a PE file.

Sources: the UAPI Group's specification of unified kernel images; systemd-stub(7), also for their profiles; and
Microsoft's PE format, for its headers. Only the table of sections is read, and the section.
"""

from __future__ import annotations

from struct import Struct

from kmodd.errors import ParseError
from kmodd.modfile.decompress import UNPACKED_LIMIT
from kmodd.modfile.initrd import Initrd, read_initrd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from kmodd.modfile.decompress import ByteFile

MAX_SECTIONS = 1024
"""Sections of an image at most; one with a dozen profiles has a hundred."""

_DOS_MAGIC = b"MZ"
_DOS_HEADER = Struct("<60xI")
"""The DOS header: where the PE header is."""
_HEADER = Struct("<4sHH12xH2x")
"""The PE header: magic number, machine, number of sections, bytes of the optional header that follows."""
_SECTION = Struct("<8sIIII16x")
"""An entry of the table of sections: name, size in memory, address, size in the file, offset."""


def read_image(file: ByteFile, limit: int = UNPACKED_LIMIT) -> Initrd:
    """Return the modules in an initial ramdisk, or in that of a unified kernel image, open at its beginning.

    Of several profiles, it is that of the default one. An image without an initial ramdisk has no modules.
    limit, errors: as of `read_initrd`; a PE file that is no unified kernel image is one.
    """
    is_unified = file.read(len(_DOS_MAGIC)) == _DOS_MAGIC
    if not is_unified:
        return read_initrd(file, limit)
    place = _initrd_place(file)
    if place is None:
        return Initrd({}, frozenset())
    start, size = place
    if not _has(file, start + size):
        raise ParseError(f"offset {start}: expected {size} bytes of the section .initrd: the image is cut off")
    try:
        return read_initrd(_Part(file, start, size), limit)
    except ParseError as error:
        raise ParseError(f"section .initrd at offset {start}, its {error}") from None


def _initrd_place(file: ByteFile) -> tuple[int, int] | None:
    """Return where the section .initrd of the default profile is, and how long; None: it has none, or it is empty.

    The default profile has what precedes the first section .profile, and in place of these what follows up to the
    second one (systemd-stub(7)).
    """
    place, is_kernel, profiles = None, False, 0
    for name, in_memory, in_file, start in _sections(file):
        profiles += name == b".profile"
        if profiles > 1:
            break
        is_kernel |= name == b".linux"
        if name == b".initrd":
            place = (start, min(in_memory, in_file))  # the size in the file is rounded up
    if place is None and not is_kernel:
        raise ParseError(
            "offset 0: expected a unified kernel image, found a PE file without sections .linux and .initrd"
        )
    return place if place and place[1] else None


def _sections(file: ByteFile) -> Iterator[tuple[bytes, int, int, int]]:
    """Yield each section: name, size in memory, size in the file, offset."""
    (start,) = _DOS_HEADER.unpack(_bytes(file, 0, _DOS_HEADER.size, "a DOS header"))
    magic, _, count, optional = _HEADER.unpack(_bytes(file, start, _HEADER.size, "a PE header"))
    if magic != b"PE\0\0":
        raise ParseError(f"offset {start}: expected a PE header, found {magic!r}")
    if count > MAX_SECTIONS:
        raise ParseError(f"offset {start}: expected at most {MAX_SECTIONS:,} sections, found {count}")
    start += _HEADER.size + optional
    table = _bytes(file, start, count * _SECTION.size, f"a table of {count} sections")
    for name, in_memory, _, in_file, offset in _SECTION.iter_unpack(table):
        yield name.rstrip(b"\0"), in_memory, in_file, offset


def _bytes(file: ByteFile, start: int, size: int, what: str) -> bytes:
    file.seek(start)
    data = file.read(size)
    if len(data) < size:
        raise ParseError(f"offset {start}: expected {what}: the image is cut off")
    return data


def _has(file: ByteFile, size: int) -> bool:
    file.seek(0, 2)
    return file.tell() >= size


class _Part:
    """Some bytes of a file, as a file that begins and ends with them."""

    def __init__(self, file: ByteFile, start: int, size: int) -> None:
        """Take the file and the part."""
        self._file, self._start, self._size = file, start, size
        self._at = 0

    def read(self, size: int, /) -> bytes:
        """Return the next bytes; fewer at the end."""
        self._file.seek(self._start + self._at)
        data = self._file.read(max(0, min(size, self._size - self._at)))
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a place, from the beginning (0), this place (1) or the end (2); return it."""
        self._at = (0, self._at, self._size)[whence] + offset
        return self._at

    def tell(self) -> int:
        """Return the place."""
        return self._at
