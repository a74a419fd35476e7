"""Ten thousand damaged modules, plain and compressed: each is an error or an answer, never anything else."""

from __future__ import annotations

import gzip
import io
import lzma
import random
import re
import subprocess
from pathlib import Path

import pytest

from kmodd.cli.kmod import depmod as depmod_tool
from kmodd.cli.kmod import modinfo as modinfo_tool
from kmodd.errors import ParseError
from kmodd.modfile import depmod_cache, depmod_graph, elf, modinfo
from kmodd.modfile.decompress import compression, unpack
from kmodd.modfile.depmod_cache import Entry
from kmodd.modfile.elf import ElfError, Image
from tests import compiled
from tests.tool import ours

pytestmark = [pytest.mark.property, pytest.mark.timeout(240)]

COUNT = 10_000
NUMBERS = (b"\xff" * 8, bytes(8), bytes(7) + b"\x80", b"\xff\xff\xff\x7f" + bytes(4))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Small modules: less debug information, so that most damage hits what is read."""
    folder = tmp_path_factory.mktemp("stripped")
    found = []
    for name in ("mod1", "mod2", "aliases-many", "params", "signed"):
        source = compiled.modules() / f"{name}.ko"
        subprocess.run(["strip", "--strip-debug", "-o", folder / f"{name}.ko", source], check=True)
        tail = source.read_bytes()
        signature = tail[tail.rindex(b"\x30\x82", 0, -40) :] if name == "signed" else b""
        found.append((folder / f"{name}.ko").read_bytes() + signature)
    return found


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes bent, numbers made huge, parts cut out or doubled, the end cut off."""
    image = bytearray(data)
    table = min(int.from_bytes(data[40:48], "little"), len(data) - 1) if data.startswith(b"\x7fELF") else 0
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not image:
            break
        at = rng.randrange(len(image))
        match rng.randrange(7):
            case 0:
                image[at] = rng.randrange(256)
            case 1:
                image[at : at + 8] = rng.choice(NUMBERS)
            case 2:
                del image[at : at + rng.randrange(64)]
            case 3:
                image[at:at] = image[at : at + rng.randrange(64)]
            case 4:
                image[rng.randrange(min(64, len(image)))] = rng.randrange(256)
            case 5:
                place = min(table + rng.randrange(64 * 30), len(image) - 1)
                image[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 6 if rng.random() < 0.3:
                del image[at:]
    return bytes(image)


def packed(data: bytes, rng: random.Random) -> bytes:
    """The module as it is, or compressed."""
    import zstandard

    match rng.randrange(10):
        case 0:
            return lzma.compress(data, preset=0)
        case 1:
            return gzip.compress(data, 1)
        case 2:
            compressed: bytes = zstandard.ZstdCompressor(level=1).compress(data)
            return compressed
        case _:
            return data


def test_damaged_modules(sources: list[bytes], rng: random.Random) -> None:
    answers = errors = 0
    for _ in range(COUNT):
        data = rng.choice(sources)
        if rng.random() < 0.5:
            data = damaged(data, rng)
        data = damaged(packed(data, rng), rng)
        try:
            name = compression(data)
            image = unpack(io.BytesIO(data), name) if name else data
            elf.facts(Image(image))
            modinfo.info(image)
            Image(image).version_facts()
            answers += 1
        except (ElfError, OSError):
            errors += 1
    assert answers + errors == COUNT
    assert answers > COUNT / 20
    assert errors > COUNT / 20


def test_damaged_modules_through_the_tools(sources: list[bytes], rng: random.Random, tmp_path: Path) -> None:
    """A whole directory at a time: messages are whole lines, and the status is 0 or 1."""
    directory = tmp_path / "lib" / "modules" / "6.1-x"
    directory.mkdir(parents=True)
    for number in range(300):
        (directory / f"m{number}.ko").write_bytes(damaged(rng.choice(sources), rng))
    said = ours(depmod_tool.main, ["-b", str(tmp_path), "6.1-x"])
    assert said.status in (0, 1)
    assert all(line.startswith(b"depmod: ") or said.status for line in said.err.splitlines())
    said = ours(modinfo_tool.main, [str(path) for path in directory.glob("*.ko")])
    assert said.status == 1
    # What is shown of a parameter may have a line break of its own.
    rest = re.sub(rb"modinfo: ERROR: Found invalid \".*?\": missing ':'\n", b"", said.err, flags=re.DOTALL)
    assert all(line.startswith(b"modinfo: ERROR: ") for line in rest.splitlines())


def test_damaged_cache(sources: list[bytes], rng: random.Random) -> None:
    """A damaged cache is refused, or equals the original if the damage changed nothing."""
    entries = {}
    for number, source in enumerate(sources):
        facts = elf.facts(Image(source))
        entries[f"/x/{number}"] = Entry(f"/x/{number}", (number, 2, 3, 4), facts, depmod_graph.export_buckets(facts))
    data = depmod_cache.dump("/x", entries.values())
    assert depmod_cache.load(data, "/x") == entries
    refused = 0
    for _ in range(2000):
        try:
            assert depmod_cache.load(damaged(data, rng), "/x") == entries
        except ParseError:
            refused += 1
    assert refused > 1500
