"""Reading the names in initial ramdisks: formats, segments, padding, and images that are cut, foreign or hostile."""

from __future__ import annotations

import gzip
import io
import subprocess
import tracemalloc
from pathlib import Path

import pytest

from kmodd.errors import ParseError
from kmodd.host.initrd_file import read_initrd_file
from kmodd.modfile import initrd
from kmodd.modfile.initrd import Initrd, read_initrd
from tests.initrds import MICROCODE, PACKERS, TRAILER, archive, entry, tree

RELEASE = "6.1.0-test"
MAIN = archive("bin/sh", *tree(RELEASE, ["drivers/a-b", "fs/ext4"]))


def read(data: bytes, limit: int = 1 << 24) -> Initrd:
    return read_initrd(io.BytesIO(data), limit)


def why(data: bytes, limit: int = 1 << 24) -> str:
    """The message for an image."""
    with pytest.raises(ParseError) as caught:
        read(data, limit)
    return str(caught.value)


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("early", [b"", MICROCODE])
def test_each_format_behind_microcode_or_not(name: str, early: bytes) -> None:
    found = read(early + PACKERS[name](MAIN))
    assert found.of(RELEASE) == {"a_b", "ext4"}
    assert found.of("6.1.0-other") == frozenset(), "the control"


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("padding", [0, 4, 512, 1 << 20])
def test_segments_follow_each_other(name: str, padding: int) -> None:
    """As mkosi and Ubuntu join them: each has an archive of its own; all count."""
    first = PACKERS[name](archive(*tree(RELEASE, ["x"])))
    first += bytes(-len(first) % 4 + padding)
    second = PACKERS["zstd"](archive(*tree(RELEASE, ["y"])))
    second += bytes(-len(second) % 4)
    assert read(first + second + archive(*tree("other", ["z"]))).modules == {
        RELEASE: {"x", "y"},
        "other": {"z"},
    }


def test_the_format_with_checksums_and_old_paths() -> None:
    data = archive(f"./lib/modules/{RELEASE}/modules.dep.bin", f"/lib/modules/{RELEASE}/a.ko", magic="070702")
    assert read(data).of(RELEASE) == {"a"}


def test_what_is_no_module_is_left_out() -> None:
    top = f"usr/lib/modules/{RELEASE}"
    data = entry(f"{top}/dir.ko", mode=0o40755) + entry(f"{top}/link.ko", b"a", 0o120777)
    data += archive(f"{top}/modules.dep", f"{top}/../x.ko", f"{top}/a.txt", "etc/b.ko", f"{top}/\x1b[2J\nc.ko")
    assert read(data).of(RELEASE) == {"link", "\x1b[2J\nc"}


def test_modules_without_an_index_are_not_found() -> None:
    found = read(archive(*tree(RELEASE, ["a"])[1:]))
    assert found.of(RELEASE) == frozenset()
    assert found.modules == {RELEASE: {"a"}}, "the control"


def test_an_image_inside_is_named() -> None:
    assert read(archive("init", "squashfs-root.img")).nested == "squashfs-root.img"
    assert read(archive("init", "my-squashfs-root.img")).nested == "", "the control"


@pytest.mark.parametrize("name", PACKERS)
def test_a_cut_image_is_one_message_with_the_offset(name: str) -> None:
    packed = MICROCODE + PACKERS[name](MAIN)
    for length in (len(MICROCODE) + 4, len(packed) // 2 + len(MICROCODE) // 2, len(packed) - 130, len(packed) - 9):
        said = why(packed[:length])
        assert said.startswith("offset ")
        assert "\n" not in said


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "offset 0: expected a cpio archive, found the end of the file"),
        (bytes(9000), "offset 0: expected a cpio archive, found the end of the file"),
        (b"\x7fELF" * 9, "offset 0: expected a cpio archive, or one compressed by gzip, xz, zstd, lzma or bzip2"),
        (MICROCODE + b"\x02\x21\x4c\x18", f"offset {len(MICROCODE)}: expected a cpio archive, or one compressed by "),
        (b"\x02\x21\x4c\x18", "; found lz4, which is not read"),
        (b"MZ\0\0", "; found a PE file, which is not read"),
        (b"070707" + bytes(200), "(070701 or 070702), found b'070707'"),
        (b"\0" + MAIN, "offset 1: expected an archive at a multiple of 4, after zero bytes"),
        (MAIN[: -len(TRAILER)], "expected a header of cpio's newc format (070701 or 070702), found the end"),
        (entry("a") + b"junk" * 40, "offset 112: expected a header of cpio's newc format"),
        (b"070701" + b"x" * 200, "offset 0: expected hexadecimal digits in the header of a file"),
        (entry("a", size=1 << 31), "expected 2147483648 bytes of 'a': the image is cut off"),
        (entry("a" * 5000), "expected a name of 1 to 4096 bytes, found 5001"),
        (gzip.compress(b"no archive", mtime=0), "offset 0, unpacked offset 0: expected a header of cpio's newc format"),
        (gzip.compress(MAIN, mtime=0)[:-4], "offset 0: damaged gzip data: cut off"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(data: bytes, said: str) -> None:
    assert said in why(data)


@pytest.mark.parametrize("name", PACKERS)
def test_the_limit_holds_for_all_segments_together(name: str) -> None:
    """Files and padding alike; an image of the limit is read."""
    data = archive("a", data=bytes(300_000))
    for image in (PACKERS[name](data) * 2, PACKERS[name](data) + bytes(400_000), PACKERS[name](data + bytes(400_000))):
        assert "exceeds the limit" in why(image, 500_000)
        assert read(image, 900_000).modules == {}, "the control"


def test_memory_is_bounded() -> None:
    """A bomb of 32 MiB, and a file that says it has 4 GiB."""
    bomb = gzip.compress(entry("a", bytes(1 << 25)) + TRAILER, 1)
    tracemalloc.start()
    try:
        assert read(bomb, 1 << 26).modules == {}
        assert "cut off" in why(gzip.compress(entry("a", bytes(1 << 20), size=(1 << 32) - 1)))
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_the_number_of_files_archives_and_names_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initrd, "MAX_ENTRIES", 3)
    assert read(archive("a", "b")).modules == {}, "the control"
    assert "expected at most 3 files" in why(archive("a", "b", "c"))
    monkeypatch.setattr(initrd, "MAX_SEGMENTS", 2)
    assert "expected at most 2 archives" in why(TRAILER * 3)
    monkeypatch.undo()
    monkeypatch.setattr(initrd, "MAX_NAMES", 100)
    names = tree(RELEASE, [f"module_{number}" for number in range(20)])
    assert "expected names of modules with at most" in why(archive(*names))


def test_empty_blocks_have_an_end() -> None:
    """A zstd frame of blocks without content; three bytes each."""
    frame = b"\x28\xb5\x2f\xfd\x00\x58" + b"\0\0\0" * 20_000
    assert "exceeds the limit" in why(frame)


def test_what_cpio_writes(tmp_path: Path) -> None:
    """With hard links and directories, padded to blocks of 512 bytes; twice, one behind the other."""
    for file in tree(RELEASE, ["a"]):
        (tmp_path / "root" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / file).write_bytes(b"x" * 700)
    (tmp_path / "root/link").hardlink_to(tmp_path / "root" / tree(RELEASE, ["a"])[1])
    command = "find . | cpio --quiet -o -H newc"
    made = subprocess.run(["sh", "-c", command], cwd=tmp_path / "root", stdout=subprocess.PIPE, check=True).stdout
    assert read(made + made).of(RELEASE) == {"a"}


def test_a_message_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"junk")
    with pytest.raises(ParseError, match="/image: offset 0: expected a cpio archive, or"):
        read_initrd_file(str(tmp_path / "image"))
    with pytest.raises(ParseError, match="/none: No such file or directory"):
        read_initrd_file(str(tmp_path / "none"))
    with pytest.raises(ParseError, match=": is a directory"):
        read_initrd_file(str(tmp_path))


def test_releases_with_an_index_alone_count_towards_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once: the control has the same one many times."""
    monkeypatch.setattr(initrd, "MAX_NAMES", 100)
    assert read(archive(*(["lib/modules/6.1/modules.dep", "lib/modules/6.1/modules.dep.bin"] * 100))).indexed == {"6.1"}
    said = why(archive(*(f"lib/modules/6.{number:03}/modules.dep" for number in range(100))))
    assert "expected names of modules with at most" in said


def test_a_name_longer_than_that_of_any_kernel_is_no_release() -> None:
    longest = "6" * 64
    found = read(archive(*tree(longest, ["a"]), *tree(f"{longest}6", ["b"])))
    assert (found.modules, found.indexed) == ({longest: frozenset({"a"})}, frozenset({longest}))
