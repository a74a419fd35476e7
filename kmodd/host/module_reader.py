"""A module's file by itself: its name, reading it, unpacking a compressed one."""

from __future__ import annotations

import errno
import os

from kmodd.names import MODULE_SUFFIXES

LIMIT = 1 << 30
"""Bytes of a module, unpacked; a small file can claim to be terabytes."""

_ZSTD, _XZ, _GZIP = b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00", b"\x1f\x8b"
"""First bytes of a compressed file; kmod goes by them too, not by the suffix (libkmod-file.c)."""


def is_module_file(name: str) -> bool:
    """Whether a base name is that of a module."""
    return name.endswith(MODULE_SUFFIXES) and not name.startswith(MODULE_SUFFIXES)


def read_module(path: str) -> bytes:
    """A module's image, unpacked. Raises OSError: EINVAL for what is cut off or damaged, ENOSYS without a library."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        data = os.read(fd, size + 1)
        while len(data) < size and (more := os.read(fd, size - len(data))):
            data += more
    finally:
        os.close(fd)
    return unpacked(data)


def read_ahead(path: str) -> None:
    """Have the disk read a file before it is needed, and do not wait. Where that fails, opening it in earnest tells."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)  # a pipe is not waited for
    except (OSError, ValueError):
        return
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
    except OSError:
        pass
    finally:
        os.close(fd)


def is_packed(name: str) -> bool:
    """Whether a file is likely compressed, by its name."""
    return not name.endswith(".ko")


def unpacked(data: bytes) -> bytes:
    """The image in a file's bytes. Raises OSError as `read_module` does."""
    if len(data) < 6:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if data.startswith(_XZ):
        return _unxz(data)
    if data.startswith(_GZIP):
        return _gunzip(data)
    if data.startswith(_ZSTD):
        return _unzstd(data)
    return data


def _broken(what: str) -> OSError:
    return OSError(errno.EINVAL, what)


def _unxz(data: bytes) -> bytes:
    """One xz stream behind the other, with padding of zero bytes between them."""
    import lzma

    image = b""
    while data:
        decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ)
        try:
            image += decoder.decompress(data, LIMIT + 1 - len(image))
        except (lzma.LZMAError, EOFError) as error:
            raise _broken(str(error)) from None
        _check_size(image)
        if not decoder.eof:
            raise _broken("compressed data is cut off")
        rest = decoder.unused_data
        data = rest.lstrip(b"\0")
        if (len(rest) - len(data)) % 4:
            raise _broken("garbage behind compressed data")
    return image


def _gunzip(data: bytes) -> bytes:
    import zlib

    image = b""
    while data:
        decoder = zlib.decompressobj(wbits=31)
        try:
            image += decoder.decompress(data, LIMIT + 1 - len(image))
        except zlib.error as error:
            raise _broken(str(error)) from None
        _check_size(image)
        if not decoder.eof:
            raise _broken("compressed data is cut off")
        data = decoder.unused_data.lstrip(b"\0")
    return image


def _unzstd(data: bytes) -> bytes:
    try:
        import zstandard
    except ImportError:
        raise OSError(errno.ENOSYS, "compressed with zstd; install python3-zstandard to unpack it") from None
    # what is cut off gives what there is, as in kmod; that it is no whole module is seen later
    try:
        with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as stream:
            image: bytes = stream.read(LIMIT + 1)
    except zstandard.ZstdError as error:
        raise _broken(str(error)) from None
    _check_size(image)
    return image


def _check_size(image: bytes) -> None:
    if len(image) > LIMIT:
        raise OSError(errno.EFBIG, f"more than {LIMIT >> 20} MiB when unpacked")
