"""Unpack a compressed module piece by piece, up to one limit: gzip, xz and zstd."""

from __future__ import annotations

import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, Literal

    Compression = Literal["gzip", "xz", "zstd"]
    """A format, by its name in /sys/module/compression (Documentation/ABI/testing/sysfs-module)."""
else:
    Compression = str

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


def _gunzip(file: IO[bytes]) -> Iterator[bytes]:
    """Unpack gzip members that follow each other, with any number of zero bytes after each.

    Other bytes after a member are ignored, as zlib's gzread does, by which kmod reads gzip files.
    """
    import zlib

    piece = file.read(_PIECE)
    while piece:
        decoder = zlib.decompressobj(wbits=31)
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
        piece, _ = _skip_zeros(decoder.unused_data, file)
        piece += file.read(1)  # at least two bytes, if there are so many
        if not piece.startswith(_GZIP):
            return


def _unxz(file: IO[bytes]) -> Iterator[bytes]:
    """Unpack xz streams that follow each other, with a multiple of four zero bytes after each (xz format, 2.2)."""
    import lzma

    piece = file.read(_PIECE)
    while piece:
        # A header may claim a dictionary of 4 GiB, which would be allocated.
        decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=UNPACKED_LIMIT)
        while not decoder.eof:
            try:
                yield decoder.decompress(piece, _PIECE)
            except lzma.LZMAError as error:
                raise _damaged("xz", error) from None
            if not decoder.eof:
                piece = file.read(_PIECE) if decoder.needs_input else b""
                if decoder.needs_input and not piece:
                    raise _damaged("xz", "cut off")
        piece, zeros = _skip_zeros(decoder.unused_data, file)
        if zeros % 4:
            raise _damaged("xz", "wrong padding")


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


_DECODERS = {"gzip": _gunzip, "xz": _unxz, "zstd": _unzstd}


def _skip_zeros(piece: bytes, file: IO[bytes]) -> tuple[bytes, int]:
    """Return the bytes from the first that is not zero, none at the end of the file, and how many zeros precede it."""
    zeros = 0
    while True:
        rest = piece.lstrip(b"\0")
        zeros += len(piece) - len(rest)
        if rest:
            return rest, zeros
        piece = file.read(_PIECE)
        if not piece:
            return b"", zeros


def _damaged(name: Compression, why: object) -> OSError:
    return OSError(errno.EINVAL, f"damaged {name} data: {why}")
