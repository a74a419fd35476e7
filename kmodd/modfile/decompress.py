"""Unpack compressed modules piece by piece, up to one limit, and the streams that initial ramdisks consist of."""

from __future__ import annotations

import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bz2 import BZ2Decompressor
    from collections.abc import Callable, Iterator
    from lzma import LZMADecompressor
    from typing import IO, Literal, Protocol

    class ByteFile(Protocol):
        """A seekable file, or a part of one."""

        def read(self, size: int, /) -> bytes:
            """Return the next bytes; fewer at the end."""

        def seek(self, offset: int, whence: int = 0, /) -> int:
            """Go to a place, from the beginning (0), this place (1) or the end (2); return it."""

        def tell(self) -> int:
            """Return the place."""

    Compression = Literal["gzip", "xz", "zstd"]
    """A format, by its name in /sys/module/compression (Documentation/ABI/testing/sysfs-module)."""
    StreamFormat = Compression | Literal["lzma", "bzip2"]
    """A format of an initial ramdisk that is unpacked here."""
else:
    Compression = StreamFormat = str

UNPACKED_LIMIT = 1 << 30
"""Bytes of a compressed module, unpacked. 33 KiB of zstd can unpack to more; the largest modules have tens of MiB."""

HEAD = 6
"""Bytes that show the format. A shorter file is no module (kmod, libkmod-file.c)."""

_GZIP = b"\x1f\x8b"
_MAGIC: tuple[tuple[bytes, Compression], ...] = (
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\x00", "xz"),
    (_GZIP, "gzip"),
)
_ZSTD_HEAD = 18
"""Most bytes of the header of a zstd frame (RFC 8878, 3.1.1.1)."""
_ZSTD_REPEATED = 1
"""Type of a block that is one byte, repeated (RFC 8878, 3.1.1.2.2)."""
_PIECE = 1 << 18
"""Bytes read and unpacked at a time; the most that is unpacked beyond the limit."""


def compression(head: bytes) -> Compression | None:
    """Return the format of a file by its first `HEAD` bytes, None for a plain file.

    As kmod, this ignores the name of the file (libkmod-file.c).
    """
    return next((name for magic, name in _MAGIC if head.startswith(magic)), None)


def unpack(file: IO[bytes], name: Compression, limit: int = UNPACKED_LIMIT) -> bytes:
    """Return the module image in the compressed file `file`, open at its beginning.

    name: its format, as `compression` returns it. limit: bytes that the image may have.
    Raises OSError: EINVAL for damaged data, EFBIG for an image beyond the limit, ENOMEM, ENOSYS without a library for
    the format, and what reading the file raises.
    """
    try:
        return b"".join(chunks(file, name, limit))
    except MemoryError:
        raise OSError(errno.ENOMEM, "not enough memory to unpack the module") from None


def chunks(file: IO[bytes], name: Compression, limit: int = UNPACKED_LIMIT) -> Iterator[bytes]:
    """Yield the image in pieces, which is all the memory it takes. Arguments and errors are those of `unpack`."""
    size = 0
    for chunk in _DECODERS[name](file):
        size += len(chunk)
        if size > limit:
            most = f"{limit / (1 << 30):g} GiB"
            raise OSError(errno.EFBIG, f"unpacked size exceeds {most}, the limit for a module: damaged or no module")
        yield chunk


def stream_chunks(file: ByteFile, name: StreamFormat) -> Iterator[bytes]:
    """Yield the content of one stream (a gzip member, a zstd frame) in pieces, without a limit of their sum.

    file: open at the beginning of the stream; behind the stream once all pieces are taken. It must be seekable.
    Raises OSError: EINVAL for damaged data, ENOSYS without a library for the format, and what reading the file raises.
    """
    return _STREAMS[name](file)


def _gunzip(file: IO[bytes]) -> Iterator[bytes]:
    """Unpack gzip members that follow each other, with any number of zero bytes after each.

    Other bytes after a member are ignored, as zlib's gzread does, by which kmod reads gzip files.
    """
    while True:
        yield from _gzip_member(file)
        _skip_zeros(file)
        head = file.read(len(_GZIP))
        if head != _GZIP:
            return
        file.seek(-len(_GZIP), 1)


def _gzip_member(file: ByteFile) -> Iterator[bytes]:
    import zlib

    decoder = zlib.decompressobj(wbits=31)
    piece = file.read(_PIECE)
    while not decoder.eof:
        try:
            chunk = decoder.decompress(piece, _PIECE)
        except zlib.error as error:
            raise _damaged("gzip", error) from None
        yield chunk
        if not decoder.eof:
            piece = decoder.unconsumed_tail or file.read(_PIECE)
            if not piece and not chunk:  # with a chunk, the decoder may hold more of it
                raise _damaged("gzip", "cut off")
    file.seek(-len(decoder.unused_data), 1)


def _unxz(file: IO[bytes]) -> Iterator[bytes]:
    """Unpack xz streams that follow each other, with a multiple of four zero bytes after each (xz format, 2.2)."""
    has_more = True
    while has_more:
        yield from _xz_stream(file)
        zeros, has_more = _skip_zeros(file)
        if zeros % 4:
            raise _damaged("xz", "wrong padding")


def _xz_stream(file: ByteFile) -> Iterator[bytes]:
    import lzma

    # A header may claim a dictionary of 4 GiB, which would be allocated.
    return _stream(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=UNPACKED_LIMIT), file, "xz")


def _lzma_stream(file: ByteFile) -> Iterator[bytes]:
    import lzma

    return _stream(lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=UNPACKED_LIMIT), file, "lzma")


def _bzip2_stream(file: ByteFile) -> Iterator[bytes]:
    import bz2

    return _stream(bz2.BZ2Decompressor(), file, "bzip2")


def _stream(decoder: LZMADecompressor | BZ2Decompressor, file: ByteFile, name: StreamFormat) -> Iterator[bytes]:
    """Unpack one stream with a decoder of the standard library."""
    import lzma

    piece = file.read(_PIECE)
    while not decoder.eof:
        try:
            chunk = decoder.decompress(piece, _PIECE)
        except (lzma.LZMAError, OSError, ValueError) as error:
            raise _damaged(name, error) from None
        yield chunk
        if not decoder.eof:
            piece = file.read(_PIECE) if decoder.needs_input else b""
            if decoder.needs_input and not piece:
                raise _damaged(name, "cut off")
    file.seek(-len(decoder.unused_data), 1)


def _unzstd(file: IO[bytes]) -> Iterator[bytes]:
    """Unpack zstd frames that follow each other."""
    try:
        import zstandard
    except ImportError:
        raise OSError(errno.ENOSYS, "compressed with zstd; install python3-zstandard to unpack it") from None
    try:
        head = file.read(_ZSTD_HEAD)
        expected = zstandard.get_frame_parameters(head).content_size % zstandard.CONTENTSIZE_UNKNOWN
        file.seek(0)
        stream = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=False)
        size = 0
        while chunk := stream.read(_PIECE):
            size += len(chunk)
            yield chunk
        if size < expected:  # the reader ends silently where the file is cut off
            raise _damaged("zstd", "cut off")
    except zstandard.ZstdError as error:
        raise _damaged("zstd", error) from None


def _zstd_frame(file: ByteFile) -> Iterator[bytes]:
    """Unpack one zstd frame, block by block: the library's decoder unpacks all that it gets at once.

    A block has at most 128 KiB (RFC 8878, 3.1.1.2).
    """
    try:
        import zstandard
    except ImportError:
        raise OSError(errno.ENOSYS, "compressed with zstd; install python3-zstandard to unpack it") from None
    try:
        head = file.read(_ZSTD_HEAD)
        size = zstandard.frame_header_size(head)
        has_checksum = zstandard.get_frame_parameters(head).has_checksum
        file.seek(size - len(head), 1)
        decoder = zstandard.ZstdDecompressor().decompressobj()
        yield decoder.decompress(head[:size])
        is_last = False
        while not is_last:
            start = file.read(3)
            block = int.from_bytes(start, "little")
            is_last = bool(block & 1)
            length = (1 if block >> 1 & 3 == _ZSTD_REPEATED else block >> 3) + (4 if is_last and has_checksum else 0)
            data = file.read(length)
            if len(start) < 3 or len(data) < length:
                raise _damaged("zstd", "cut off")
            yield decoder.decompress(start + data)
    except zstandard.ZstdError as error:
        raise _damaged("zstd", error) from None


_DECODERS = {"gzip": _gunzip, "xz": _unxz, "zstd": _unzstd}
_STREAMS: dict[StreamFormat, Callable[[ByteFile], Iterator[bytes]]] = {
    "gzip": _gzip_member, "xz": _xz_stream, "zstd": _zstd_frame, "lzma": _lzma_stream, "bzip2": _bzip2_stream,
}  # fmt: skip


def _skip_zeros(file: ByteFile) -> tuple[int, bool]:
    """Place a file at its next byte that is not zero; return how many zeros there were, and whether there is one."""
    zeros = 0
    while piece := file.read(_PIECE):
        rest = piece.lstrip(b"\0")
        zeros += len(piece) - len(rest)
        if rest:
            file.seek(-len(rest), 1)
            return zeros, True
    return zeros, False


def _damaged(name: StreamFormat, why: object) -> OSError:
    return OSError(errno.EINVAL, f"damaged {name} data: {why}")
