"""The initial ramdisk in a unified kernel image: which section it is, and images that are cut, foreign or hostile."""

from __future__ import annotations

import io
import struct
import tracemalloc
from pathlib import Path

import pytest

from kmodd.errors import ParseError
from kmodd.host.initrd_file import read_initrd_file
from kmodd.modfile.initrd import Initrd
from kmodd.modfile.unified_image import read_image
from tests.initrds import MICROCODE, PACKERS, archive, entry, tree, unified

RELEASE = "6.1.0-test"
MAIN = archive("bin/sh", *tree(RELEASE, ["drivers/a-b", "fs/ext4"]))
OTHER = archive(*tree(RELEASE, ["other"]))
LINUX = (".linux", b"MZ kernel")
WHOLE = unified(LINUX, (".osrel", b"ID=debian\n"), (".initrd", MICROCODE + PACKERS["zstd"](MAIN)), (".uname", b"x"))
TABLE = 64 + 24 + 240
"""Offset of the table of sections."""


def read(data: bytes, limit: int = 1 << 24) -> Initrd:
    return read_image(io.BytesIO(data), limit)


def why(data: bytes, limit: int = 1 << 24) -> str:
    """The message for an image."""
    with pytest.raises(ParseError) as caught:
        read(data, limit)
    said = str(caught.value)
    assert "\n" not in said
    return said


def changed(at: int, form: str, value: object, data: bytes = WHOLE) -> bytes:
    """An image with another value at an offset."""
    raw = struct.pack(f"<{form}", value)
    return data[:at] + raw + data[at + len(raw) :]


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("early", [b"", MICROCODE])
def test_the_initrd_is_read_as_one_by_itself(name: str, early: bytes) -> None:
    """It ends where its section does, though more bytes of the file follow."""
    inside = early + PACKERS[name](MAIN)
    assert read(unified(LINUX, (".initrd", inside), (".uname", b"x" * 700))) == read(inside)
    assert read(inside).of(RELEASE) == {"a_b", "ext4"}


def test_padding_behind_the_initrd_is_none_of_it() -> None:
    """Its size in memory counts; that in the file is rounded up."""
    at = TABLE + 2 * 40 + 8
    (size,) = struct.unpack_from("<I", WHOLE, at)
    assert "expected a header" in why(changed(at, "I", size - 4)) or "cut off" in why(changed(at, "I", size - 4))
    assert read(changed(at, "I", size + 100)) == read(WHOLE), "padding is zero bytes"
    assert read(changed(at, "I", 1 << 31)) == read(WHOLE), "the rest is zero bytes in memory"


def test_of_several_profiles_the_default_one_counts() -> None:
    """It is the first, with what precedes all profiles where it has none of its own (systemd-stub(7))."""
    base, first, second = (".initrd", MAIN), (".initrd", OTHER), (".initrd", archive("x"))
    profile = (".profile", b"ID=x\n")
    assert read(unified(LINUX, base, profile, profile, second)).of(RELEASE) == {"a_b", "ext4"}
    assert read(unified(LINUX, base, profile, first, profile, second)).of(RELEASE) == {"other"}


@pytest.mark.parametrize("sections", [(LINUX,), (LINUX, (".initrd", b""))])
def test_an_image_without_an_initrd_has_no_modules(sections: tuple[tuple[str, bytes], ...]) -> None:
    assert read(unified(*sections)) == Initrd({}, frozenset())


def test_another_file_is_read_as_an_initrd() -> None:
    assert read(MAIN).of(RELEASE) == {"a_b", "ext4"}
    assert why(b"\x7fELF" * 9).startswith("offset 0: expected a cpio archive")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"MZ", "offset 0: expected a DOS header: the image is cut off"),
        (WHOLE[:70], "offset 64: expected a PE header: the image is cut off"),
        (changed(60, "I", 0xFFFFFFFF), "offset 4294967295: expected a PE header: the image is cut off"),
        (changed(64, "4s", b"NE\0\0"), "offset 64: expected a PE header, found b'NE\\x00\\x00'"),
        (changed(70, "H", 1025), "offset 64: expected at most 1,024 sections, found 1025"),
        (changed(70, "H", 1024), f"offset {TABLE}: expected a table of 1024 sections: the image is cut off"),
        (changed(84, "H", 0xFFFF), "offset 65623: expected a table of 4 sections: the image is cut off"),
        (unified((".text", b"x")), "offset 0: expected a unified kernel image, found a PE file without "),
        (unified(), "offset 0: expected a unified kernel image"),
        (WHOLE[:1600], "offset 1536: expected "),
        (changed(TABLE + 2 * 40 + 20, "I", 0xFFFFFF00), "offset 4294967040: expected "),
        (unified((".initrd", b"junk" * 40)), "section .initrd at offset 512, its offset 0: expected a cpio archive"),
        (unified((".initrd", WHOLE)), "its offset 0: expected a cpio archive, or one compressed by gzip, xz, zstd, "),
        (unified((".initrd", MAIN[:-130])), "section .initrd at offset 512, its offset "),
        (unified((".initrd", PACKERS["gzip"](MAIN)[:-9])), "its offset 0: damaged gzip data: cut off"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(data: bytes, said: str) -> None:
    assert said in why(data)


def test_every_cut_is_one_message_or_an_answer() -> None:
    """An answer only if the section is whole."""
    end = struct.unpack_from("<I", WHOLE, TABLE + 2 * 40 + 8)[0] + 1536
    for length in range(2, len(WHOLE), 7):
        if length < end:
            assert why(WHOLE[:length]).startswith("offset ")
        else:
            assert read(WHOLE[:length]) == read(WHOLE)


def test_the_limit_and_memory_are_those_of_an_initrd() -> None:
    """A bomb of 32 MiB, and a table of the most sections, each of which is the whole file."""
    bomb = unified((".initrd", PACKERS["gzip"](entry("a", bytes(1 << 25)))))
    many = unified(*[(".initrd", MAIN)] * 1024)
    tracemalloc.start()
    try:
        assert "exceeds the limit" in why(bomb, 1 << 20)
        assert read(many).of(RELEASE) == {"a_b", "ext4"}
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_the_message_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.efi"
    path.write_bytes(WHOLE[:70])
    with pytest.raises(ParseError) as caught:
        read_initrd_file(str(path))
    assert str(caught.value) == f"{path}: offset 64: expected a PE header: the image is cut off"
    path.write_bytes(WHOLE)
    assert read_initrd_file(str(path)).of(RELEASE) == {"a_b", "ext4"}
