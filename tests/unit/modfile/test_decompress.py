"""Unpacking compressed modules: the limit in each format, damage, streams that follow each other."""

from __future__ import annotations

import binascii
import errno
import gzip
import io
import lzma
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from kmodd.cli.kmod import depmod, modinfo
from kmodd.host.module_reader import read_module
from kmodd.modfile.decompress import UNPACKED_LIMIT, Compression, chunks, compression, unpack
from tests.tool import ours

ROOT = Path(__file__).resolve().parents[3]
GIB = 1 << 30


def zstd(data: bytes) -> bytes:
    """Compress into one zstd frame."""
    return zstandard.ZstdCompressor(level=1).compress(data)


PACKERS: dict[Compression, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
    "zstd": zstd,
}
each_format = pytest.mark.parametrize("name", PACKERS)


def unpacked(data: bytes, name: Compression, limit: int = UNPACKED_LIMIT) -> bytes:
    """Unpack bytes in place of a file."""
    return unpack(io.BytesIO(data), name, limit)


def errno_of(data: bytes, name: Compression, limit: int = UNPACKED_LIMIT) -> int | None:
    """Return the error of unpacking, None where there is none."""
    try:
        unpacked(data, name, limit)
    except OSError as error:
        return error.errno
    return None


# ── the limit ────────────────────────────────────────────────────────────────────────────────────────────────────────


@each_format
@pytest.mark.parametrize("limit", [10, 70_000, 3_000_000])
def test_an_image_of_the_limit_is_unpacked_and_one_byte_more_is_refused(name: Compression, limit: int) -> None:
    image = bytes(range(256)) * (limit // 256) + bytes(limit % 256)
    assert unpacked(PACKERS[name](image), name, limit) == image
    assert errno_of(PACKERS[name](image + b"x"), name, limit) == errno.EFBIG


@each_format
def test_the_limit_counts_all_streams(name: Compression) -> None:
    pack = PACKERS[name]
    assert unpacked(pack(b"a" * 60) + pack(b"b" * 40), name, 100) == b"a" * 60 + b"b" * 40
    assert errno_of(pack(b"a" * 60) + pack(b"b" * 41), name, 100) == errno.EFBIG


@each_format
def test_the_limit_is_1_gib(name: Compression) -> None:
    """The constant itself: 1 GiB of zeros comes out, and the byte after it is refused. Pieces need no such memory."""
    packed = PACKERS[name](bytes(16 << 20)) * 64 + PACKERS[name](b"x")
    sizes: list[int] = []
    with pytest.raises(OSError, match="unpacked size exceeds 1 GiB, the limit for a module: damaged or no module"):
        sizes.extend(map(len, chunks(io.BytesIO(packed), name)))
    assert sum(sizes) == UNPACKED_LIMIT == GIB
    assert max(sizes) < GIB >> 10


UNPACK_IN_LITTLE_MEMORY = """
import io, resource, sys
from kmodd.modfile.decompress import unpack
{imports}
packed, name, limit, room = open(sys.argv[1], "rb").read(), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
pages = int(open("/proc/self/statm").read().split()[0])
most = pages * resource.getpagesize() + room
resource.setrlimit(resource.RLIMIT_AS, (most, most))
try:
    print(len(unpack(io.BytesIO(packed), name, limit)))
except OSError as error:
    print(error.errno)
"""


@each_format
@pytest.mark.parametrize("size", [16 << 20, 192 << 20])
def test_a_bomb_takes_no_memory_beyond_the_limit(name: Compression, size: int, tmp_path: Path) -> None:
    """A process with room for an image of the limit, twice for joining it, refuses a bomb and does not run out.

    The control: the same room is enough for an image of the limit.
    """
    limit = 16 << 20
    file = tmp_path / "packed"
    file.write_bytes(PACKERS[name](bytes(size)))
    library = {"gzip": "zlib", "xz": "lzma", "zstd": "zstandard"}[name]
    program = UNPACK_IN_LITTLE_MEMORY.format(imports=f"import {library}")
    words = [sys.executable, "-c", program, str(file), name, str(limit), str(2 * limit + (16 << 20))]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) == (size if size == limit else errno.EFBIG)


@each_format
def test_memory_that_runs_out_is_an_error(name: Compression, tmp_path: Path) -> None:
    """The control of the test above: without the room, the same program does run out."""
    file = tmp_path / "packed"
    file.write_bytes(PACKERS[name](bytes(64 << 20)))
    library = {"gzip": "zlib", "xz": "lzma", "zstd": "zstandard"}[name]
    program = UNPACK_IN_LITTLE_MEMORY.format(imports=f"import {library}")
    words = [sys.executable, "-c", program, str(file), name, str(UNPACKED_LIMIT), str(48 << 20)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) == errno.ENOMEM


def test_an_xz_dictionary_beyond_the_limit_is_refused() -> None:
    """A header of 24 bytes may claim 4 GiB, which liblzma allocates; up to the limit it may claim."""
    packed = bytearray(lzma.compress(b"image", preset=0))
    header = slice(12, 12 + (packed[12] + 1) * 4 - 4)  # block header without its checksum (xz format, 3.1)
    place = packed.index(b"\x21\x01", header.start, header.stop) + 2  # LZMA2, one byte of properties
    for coded, is_taken in ((28, True), (40, False)):  # 64 MiB, 4 GiB
        packed[place] = coded
        packed[header.stop : header.stop + 4] = binascii.crc32(packed[header]).to_bytes(4, "little")
        if is_taken:
            assert unpacked(bytes(packed), "xz") == b"image"
        else:
            assert errno_of(bytes(packed), "xz") == errno.EINVAL


@each_format
def test_modinfo_and_depmod_name_a_file_beyond_the_limit(name: Compression, limit: int, tmp_path: Path) -> None:
    directory = tmp_path / "lib" / "modules" / "6.1-x"
    directory.mkdir(parents=True)
    path = directory / "a.ko"
    path.write_bytes(PACKERS[name](bytes(limit + 1)))
    said = ours(modinfo.main, [str(path)])
    assert said.status == 1
    assert b"could not get modinfo from 'a': File too large (unpacked size exceeds " in said.err
    said = ours(depmod.main, ["-n", "-b", str(tmp_path), "6.1-x"])
    assert b"failed to load symbols from %s: File too large\n" % bytes(path) in said.err
    assert b"size, unpacked, exceeds 1 GiB, the limit for a module" in said.err
    path.write_bytes(PACKERS[name](bytes(limit)))
    assert b"too large" not in ours(modinfo.main, [str(path)]).err


# ── the data ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@each_format
def test_the_first_bytes_tell_the_format(name: Compression, tmp_path: Path) -> None:
    packed = PACKERS[name](b"image of a module")
    assert compression(packed[:6]) == name
    path = tmp_path / "a.ko"  # whatever its name says (kmod, libkmod-file.c)
    path.write_bytes(packed)
    assert read_module(str(path)) == b"image of a module"


@pytest.mark.parametrize("head", [b"", b"\x7fELF\x02\x01", b"\xfd7zXZ", b"\x1f", b"BZh91A"])
def test_other_bytes_are_no_compressed_file(head: bytes) -> None:
    assert compression(head) is None


@each_format
def test_an_image_of_several_pieces_is_unpacked(name: Compression) -> None:
    image = b"".join(binascii.crc32(number.to_bytes(4, "big")).to_bytes(4, "big") for number in range(500_000))
    half = len(image) // 2
    pack = PACKERS[name]
    assert unpacked(pack(image), name) == image
    assert unpacked(pack(image[:half]) + pack(image[half:]), name) == image
    assert unpacked(pack(b""), name) == b""


@pytest.mark.parametrize("name", ["gzip", "xz"])
@pytest.mark.parametrize("length", [1, 100, 300_000])
def test_cut_off_data_is_an_error(name: Compression, length: int) -> None:
    """Wherever it is cut: in the header, in the data, in the checksum."""
    image = b"".join(binascii.crc32(number.to_bytes(4, "big")).to_bytes(4, "big") for number in range(200_000))
    packed = PACKERS[name](image)
    assert errno_of(packed[:-length], name) == errno.EINVAL
    assert errno_of(packed[:length] if length < len(packed) else packed[:9], name) == errno.EINVAL
    assert errno_of(PACKERS[name](b"whole") + packed[: length + 1], name) == errno.EINVAL


def test_a_zstd_file_that_is_cut_off_is_an_error() -> None:
    """The library's reader ends silently there; the size in the frame's header tells."""
    image = b"".join(binascii.crc32(number.to_bytes(4, "big")).to_bytes(4, "big") for number in range(200_000))
    assert errno_of(zstd(image)[:-500], "zstd") == errno.EINVAL
    assert unpacked(zstd(image) + zstd(image), "zstd") == image * 2


@pytest.mark.parametrize("name", ["xz", "zstd"])
def test_garbage_after_the_data_is_an_error(name: Compression) -> None:
    """As in kmod 30."""
    assert errno_of(PACKERS[name](b"image") + b"garbage garbage", name) == errno.EINVAL


@pytest.mark.parametrize("garbage", [b"\x1f", b"\x01\x8b", b"garbage garbage", bytes(9) + b"x"])
def test_garbage_after_a_gzip_member_is_ignored(garbage: bytes) -> None:
    """As by zlib's gzread, which kmod uses."""
    assert unpacked(gzip.compress(b"image") + garbage, "gzip") == b"image"


@pytest.mark.parametrize("zeros", [4, 1 << 19])
def test_zeros_after_a_stream_are_skipped(zeros: int) -> None:
    for name in ("gzip", "xz"):
        packed = PACKERS[name](b"image") + bytes(zeros)
        assert unpacked(packed, name) == b"image"
        assert unpacked(packed + PACKERS[name](b" more"), name) == b"image more"
    assert unpacked(gzip.compress(b"image") + b"\0", "gzip") == b"image"
    assert errno_of(lzma.compress(b"image") + bytes(zeros + 1), "xz") == errno.EINVAL


@each_format
def test_damaged_data_is_an_error(name: Compression) -> None:
    packed = bytearray(PACKERS[name](bytes(range(256)) * 4))
    packed[-6] ^= 0xFF  # the checksum, or the mark of the end
    packed[len(packed) // 2] ^= 0xFF
    assert errno_of(bytes(packed), name) == errno.EINVAL


def test_without_the_library_zstd_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = zstd(b"image")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert errno_of(packed, "zstd") == errno.ENOSYS
