"""Read which modules an initial ramdisk has: cpio archives, plain or compressed, one behind the other.

The format is that of Documentation/driver-api/early-userspace/buffer-format.rst, as the kernel reads it
(init/initramfs.c). Only names are kept; no file is unpacked.
"""

from __future__ import annotations

import re
import stat
from binascii import Error as HexError
from binascii import unhexlify
from struct import Struct

from kmodd.dataclass import dataclass
from kmodd.errors import ParseError
from kmodd.modfile.decompress import UNPACKED_LIMIT, stream_chunks
from kmodd.names import MODULE_SUFFIXES, module_of_path
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kmodd.modfile.decompress import ByteFile, StreamFormat

MAX_ENTRIES = 1 << 18
"""Files of an image at most; those of Debian have 3,000."""
MAX_NAMES = 8 << 20
"""Bytes of the names of modules and kernel releases that are kept."""

MAX_SEGMENTS = 1024
"""Archives and compressed streams of an image at most; each has a buffer of its own."""

_PIECE = 1 << 18
_PIECE_COST = 1024
"""Bytes that each piece of a stream counts beside its own, so that empty ones have an end."""
_STEP = 4096
"""Bytes in which padding is skipped."""
_HEADER = 110
"""Bytes of the header of an entry: the magic number and 13 numbers of 8 hexadecimal digits."""
_NUMBERS = Struct(">13I")
_MODE, _SIZE, _NAME_SIZE = 1, 6, 11
"""Positions among the numbers."""
_MAGICS = (b"070701", b"070702")
"""The `newc` format, without and with a checksum."""
_PATH_MAX = 4096
_RELEASE_MAX = 64
"""Characters of a kernel release at most (__NEW_UTS_LEN, include/uapi/linux/utsname.h)."""
_TRAILER = b"TRAILER!!!"
_FORMATS: tuple[tuple[bytes, StreamFormat], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\x5d\x00", "lzma"),
)
"""As the kernel knows them (lib/decompress.c)."""
_NOT_READ = ((b"\x02\x21\x4c\x18", "lz4"), (b"\x89LZO", "lzo"), (b"MZ", "a PE file"))
_MODULE_FILE = re.compile(r"(?:\.?/)*(?:usr/)?lib/modules/([^/]+)/(.+)", re.DOTALL)
_NESTED = ("squashfs-root.img", "squash-root.img", "erofs-root.img")
"""Images in which dracut's modules squash, squash-squashfs and squash-erofs put all files."""


@dataclass(frozen=True, slots=True)
class Initrd:
    """The modules in an initial ramdisk."""

    modules: Mapping[str, frozenset[str]]
    """Kernel release → names of the modules, with `_`."""
    indexed: frozenset[str]
    """Releases with a modules.dep, without which modprobe finds no module."""
    nested: str = ""
    """Name of an image inside that has the files and is not read; empty: there is none."""

    def of(self, release: str) -> frozenset[str]:
        """Return the modules of a kernel that modprobe finds."""
        return self.modules.get(release, frozenset()) if release in self.indexed else frozenset()


def read_initrd(file: ByteFile, limit: int = UNPACKED_LIMIT) -> Initrd:
    """Return the modules in an image, open at its beginning and seekable.

    limit: bytes of all segments together, unpacked, padding included.
    Raises ParseError, with the offset in the image, for what the kernel does not take, for a format that is not read,
    and beyond the limits; OSError: what reading the file raises.
    """
    found = _Found()
    left = limit
    start = segments = 0
    while True:
        file.seek(start)
        plain = _Source(_pieces(file), left, "offset", start)
        if not plain.skip_zeros():
            break
        start = plain.at
        head = plain.peek(_HEADER)
        segments += 1
        if segments > MAX_SEGMENTS:
            raise plain.wrong(f"expected at most {MAX_SEGMENTS:,} archives")
        if head.startswith(b"0"):
            _read_archive(plain, found)
            left, start = plain.left, plain.at
            continue
        packed = _packed(file, plain, head)
        _read_archives(packed, found)
        left, start = packed.left, file.tell()
    if not segments:
        raise ParseError(f"offset {start}: expected a cpio archive, found the end of the file")
    modules = {release: frozenset(names) for release, names in found.modules.items()}
    return Initrd(modules, frozenset(found.indexed), found.nested)


class _Found:
    """What has been found so far."""

    def __init__(self) -> None:
        self.modules: dict[str, set[str]] = {}
        self.indexed: set[str] = set()
        self.nested = ""
        self.entries = self.kept = 0

    def add(self, name: str) -> None:
        """Take the name of a file or link."""
        if name.endswith(_NESTED) and name.rpartition("/")[2] in _NESTED:
            self.nested = name
        match = _MODULE_FILE.fullmatch(name)
        if match is None:
            return
        release, path = match.groups()
        if len(release) > _RELEASE_MAX:
            return
        if path in ("modules.dep", "modules.dep.bin"):
            if release not in self.indexed:
                self.indexed.add(release)
                self.kept += len(release)
        elif path.endswith(MODULE_SUFFIXES) and ".." not in (release, *path.split("/")):
            module = module_of_path(path)
            of_release = self.modules.setdefault(release, set())
            if module not in of_release:
                of_release.add(module)
                self.kept += len(module) + len(release)


class _Source:
    """The bytes of a file or of one stream in it, in order, up to a limit."""

    def __init__(self, pieces: Iterator[bytes], left: int, what: str, at: int = 0) -> None:
        """Take the bytes and how many may be read. what: how an offset is introduced in a message. at: of the first."""
        self._pieces, self._what = pieces, what
        self._data, self._next = b"", 0
        self.left, self.at = left, at

    def take(self, size: int) -> bytes:
        """Return the next bytes; fewer at the end. size: small, as they are joined."""
        data = self.peek(size)
        self._forward(len(data))
        return data

    def peek(self, size: int) -> bytes:
        """Return what `take` would."""
        while len(self._data) - self._next < size and (piece := self._more()):
            self._data, self._next = self._data[self._next :] + piece, 0
        return self._data[self._next : self._next + size]

    def skip(self, size: int) -> bool:
        """Skip bytes; return whether there were so many."""
        while size > (held := len(self._data) - self._next):
            self._forward(held)
            size -= held
            self._data, self._next = self._more(), 0
            if not self._data:
                return False
        self._forward(size)
        return True

    def skip_zeros(self) -> bool:
        """Skip zero bytes; return whether another byte follows."""
        while piece := self.peek(_STEP):
            rest = len(piece.lstrip(b"\0"))
            self._forward(len(piece) - rest)
            if rest:
                return True
        return False

    def wrong(self, expected: str) -> ParseError:
        """Return an error at this place."""
        return ParseError(f"{self._what} {self.at}: {expected}")

    def _forward(self, size: int) -> None:
        self._next += size
        self.at += size
        self._count(size)

    def _count(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise self.wrong("expected less: the image, unpacked, exceeds the limit")

    def _more(self) -> bytes:
        """Return the next piece; empty at the end."""
        for piece in self._pieces:
            self._count(_PIECE_COST)
            if piece:
                return piece
        return b""


def _pieces(file: ByteFile) -> Iterator[bytes]:
    while piece := file.read(_PIECE):
        yield piece


def _packed(file: ByteFile, plain: _Source, head: bytes) -> _Source:
    """Return the bytes of the compressed segment at the place of `plain`, which begins with `head`."""
    name = next((name for magic, name in _FORMATS if head.startswith(magic)), None)
    if name is None:
        foreign = next((what for magic, what in _NOT_READ if head.startswith(magic)), "")
        found = f"{foreign}, which is not read" if foreign else repr(head[:6])
        raise plain.wrong(f"expected a cpio archive, or one compressed by gzip, xz, zstd, lzma or bzip2; found {found}")
    file.seek(plain.at)

    def pieces() -> Iterator[bytes]:
        try:
            yield from stream_chunks(file, name)
        except OSError as error:
            raise plain.wrong(f"{error.strerror or error}") from None

    return _Source(pieces(), plain.left, f"offset {plain.at}, unpacked offset")


def _read_archives(source: _Source, found: _Found) -> None:
    """Read the archives of one stream, and the stream to its end."""
    while source.skip_zeros():
        _read_archive(source, found)


def _read_archive(source: _Source, found: _Found) -> None:
    """Read one archive, to its trailer."""
    if source.at % 4:
        raise source.wrong("expected an archive at a multiple of 4, after zero bytes")
    while True:
        found.entries += 1
        if found.entries > MAX_ENTRIES:
            raise source.wrong(f"expected at most {MAX_ENTRIES:,} files")
        if found.kept > MAX_NAMES:
            raise source.wrong(f"expected names of modules with at most {MAX_NAMES >> 20} MiB in all")
        head = source.peek(_HEADER)
        if not head.startswith(_MAGICS):
            cut = "070701".startswith(decode(head[:6])) or "070702".startswith(decode(head[:6]))
            what = "the end: the image is cut off" if cut else repr(head[:6])
            raise source.wrong(f"expected a header of cpio's newc format (070701 or 070702), found {what}")
        if len(head) < _HEADER:
            raise source.wrong(f"expected a header of {_HEADER} bytes, found {len(head)}: the image is cut off")
        try:
            numbers = _NUMBERS.unpack(unhexlify(head[6:]))
        except HexError:
            raise source.wrong("expected hexadecimal digits in the header of a file") from None
        size, name_size = numbers[_SIZE], numbers[_NAME_SIZE]
        if not 0 < name_size <= _PATH_MAX:
            raise source.wrong(f"expected a name of 1 to {_PATH_MAX} bytes, found {name_size}")
        source.take(_HEADER)
        name = source.take(name_size)
        if len(name) < name_size:
            raise source.wrong(f"expected a name of {name_size} bytes: the image is cut off")
        source.take(-(_HEADER + name_size) % 4)
        name = name.partition(b"\0")[0]
        if name == _TRAILER:
            return
        if not source.skip(size):
            raise source.wrong(f"expected {size} bytes of {decode(name)!r}: the image is cut off")
        source.take(-size % 4)
        if stat.S_ISREG(numbers[_MODE]) or stat.S_ISLNK(numbers[_MODE]):
            found.add(decode(name))
