"""Module files: looking for them below a directory, reading them, unpacking compressed ones."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from kmodd import depmod_d
from kmodd.depmod import Complaint, Member, member
from kmodd.depmod_cache import Stamp
from kmodd.depmod_d import DepmodConfig
from kmodd.names import MODULE_SUFFIXES

LIMIT = 1 << 30
"""Bytes of a module, unpacked; a small file can claim to be terabytes."""

_ZSTD, _XZ, _GZIP = b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00", b"\x1f\x8b"
"""First bytes of a compressed file; kmod goes by them too, not by the suffix (libkmod-file.c)."""


Place = tuple[int, int]
"""Device and inode of a directory."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A module file, and how it looked from outside."""

    member: Member
    stamp: Stamp


def is_module_file(name: str) -> bool:
    """Whether a base name is that of a module."""
    return name.endswith(MODULE_SUFFIXES) and not name.startswith(MODULE_SUFFIXES)


def stamp_of(status: os.stat_result) -> Stamp:
    """What tells one state of a file from another."""
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


# ── looking for them ─────────────────────────────────────────────────────────────────────────────────────────────────


class Search:
    """All modules below a module directory, one for each name, as depmod.d prefers them (depmod_modules_search)."""

    def __init__(self, directory: str, config: DepmodConfig, root: str = "") -> None:
        """`directory` as it is printed; `root` is put before each path that is opened."""
        self._directory = directory
        self._config = config
        self._root = root
        self._excluded = frozenset((*depmod_d.ALWAYS_EXCLUDED, *config.excludes))
        self._found: dict[str, Seen] = {}
        self.complaints: list[Complaint] = []

    def run(self) -> list[Seen]:
        """Look for them, in the order in which the filesystem names them. Raises OSError for the directory itself."""
        self._search(self._directory)
        for external in self._config.externals:
            try:
                self._search(external)
            except OSError:
                continue
        return list(self._found.values())

    def _search(self, directory: str) -> None:
        try:
            status = os.stat(self._root + directory)
            entries = os.scandir(self._root + directory)
        except OSError as error:
            self._complain(f"could not open directory {directory}: {os.strerror(error.errno or 0)}")
            raise
        with entries:
            self._walk(directory, entries, ((status.st_dev, status.st_ino),))

    def _walk(self, directory: str, entries: Iterator[os.DirEntry[str]], way: tuple[Place, ...]) -> None:
        """`way`: this directory and those above it, by which a link back up is known."""
        for entry in entries:
            if entry.name in self._excluded:
                continue
            path = f"{directory}/{entry.name}"
            try:
                if entry.is_file(follow_symlinks=False) and not is_module_file(entry.name):
                    continue
                status = entry.stat()
            except OSError as error:
                # kmod names the descriptor of the directory; the outermost has the first that is free
                self._complain(f"fstatat({2 + len(way)}, {entry.name}): {error.strerror}")
                continue
            if stat.S_ISDIR(status.st_mode):
                self._enter(path, status, way)
            else:
                self._file(path, entry.name, status)

    def _enter(self, path: str, status: os.stat_result, way: tuple[Place, ...]) -> None:
        here = (status.st_dev, status.st_ino)
        try:
            if here in way:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            with os.scandir(self._root + path) as entries:
                self._walk(path, entries, (*way, here))
        except OSError as error:
            name = path.rpartition("/")[2]
            self._complain(f"openat({2 + len(way)}, {name}, O_RDONLY): {error.strerror}")

    def _file(self, path: str, name: str, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            self._complain(f"unsupported file type {path}: {stat.S_IFMT(status.st_mode):o}")
            return
        if not is_module_file(name):
            return
        new = member(path, self._directory)
        rival = self._found.get(new.name)
        if rival is not None:
            if not depmod_d.wins(self._config, self._directory, new.name, path, rival.member.path):
                return
            del self._found[new.name]
        self._found[new.name] = Seen(new, stamp_of(status))

    def _complain(self, text: str) -> None:
        self.complaints.append(Complaint("ERROR", text))


# ── reading them ─────────────────────────────────────────────────────────────────────────────────────────────────────


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
