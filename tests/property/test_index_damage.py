"""10,000 damaged indexes: each ends in a clear error or in an answer, none in a traceback or a hang.

Texts and .bin files of the small tree are cut, flipped, filled with other bytes, or put together from pieces, and then
asked everything. A file counts as hanging when one takes more than a second of this thread's own time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable

import pytest

from kmodd.config.modprobe_d import Config
from kmodd.errors import ParseError
from kmodd.index import text_files
from kmodd.index.bin_reader import BinIndex
from kmodd.index.catalog import Catalog, Snapshot, lookup_or_nothing
from kmodd.index.layer import Layer
from kmodd.kernel.proc_modules import NOTHING_LOADED
from kmodd.planning.request import Request
from kmodd.planning.resolve import ProbeOptions, resolve
from tests.rootfs import ROOTFS, twins

pytestmark = [pytest.mark.property, pytest.mark.timeout(180)]

FILES = 10_000
QUESTIONS = (
    "ext4",
    "fs-ext4",
    "aes",
    "nosuch",
    "pci:v00008086d000010D3sv0sd0bc02sc00i00",
    "symbol:jbd2__journal_start",
    "*",
)
TREE = ROOTFS / "_tree"
TEXTS = {path.name: path.read_bytes() for path in TREE.iterdir() if path.name != "modules.softdep"}
BINS = twins(TREE) | {"34 " + name: data for name, data in twins(TREE, preorder=True).items()}


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to four kinds of damage."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(out)) if out else 0
        size = rng.choice((1, 1, 2, 4, 16, 200))
        match rng.randrange(7):
            case 0:
                del out[at:]
            case 1:
                out[at : at + 1] = bytes((rng.randrange(256),))
            case 2:
                out[at : at + size] = rng.randbytes(size)
            case 3:
                del out[at : at + size]
            case 4:
                start = rng.randrange(len(out)) if out else 0
                out[at:at] = out[start : start + size]
            case 5:
                out[at : at + 4] = rng.choice(
                    (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x20\0\0\x0c", b"\xe0\0\0\x0c", b"*?[\n")
                )
            case _:
                words = [out[i : i + 4] for i in range(0, len(out), 4)]
                one, other = rng.randrange(len(words) or 1), rng.randrange(len(words) or 1)
                if words:
                    words[one], words[other] = words[other], words[one]
                out = bytearray(b"".join(words))
    return bytes(out)


def ask_bin(data: bytes, questions: Iterable[str]) -> None:
    """Look names up in a .bin, and dump it; a ParseError, which names the file and an offset, is the one error."""
    try:
        index = BinIndex(data, "x.bin")
    except ParseError as error:
        assert_clear(error)
        return
    for question in questions:
        for ask in (index.get, index.wildcard):
            try:
                ask(question.replace("-", "_"))
            except ParseError as error:
                assert_clear(error)
    try:
        for _ in index.entries():
            pass
    except ParseError as error:
        assert_clear(error)


def assert_clear(error: ParseError) -> None:
    words = str(error).split(": ")
    assert words[0] == "x.bin"
    assert words[1].removeprefix("offset ").isdigit()
    assert words[2]


def ask_catalog(files: dict[str, bytes]) -> None:
    """Resolve requests with a catalog: nothing is raised, and each problem names its file."""
    for like_kmod in (False, True):
        catalog = Catalog([Layer("/m", files.get)], like_kmod)
        snapshot = Snapshot(catalog, Config())
        for question in QUESTIONS:
            lookup_or_nothing(question, snapshot)
            resolve(Request(question, "operator"), snapshot, NOTHING_LOADED, ProbeOptions(), lambda _: True)
        for name in ("modules.alias", "modules.symbols"):
            for _ in catalog.dump(name):
                pass
        catalog.names()
        assert all(problem.at.file and problem.expected for problem in snapshot.problems)


def test_damaged_bins(rng: random.Random) -> None:
    names = sorted(BINS)
    slowest = 0.0
    for number in range(FILES):
        data = damaged(BINS[names[number % len(names)]], rng)
        start = time.thread_time()
        ask_bin(data, rng.sample(QUESTIONS, 2))
        slowest = max(slowest, time.thread_time() - start)
    assert slowest < 1


def test_damaged_texts(rng: random.Random) -> None:
    parsers = {
        "modules.dep": text_files.dep_lines, "modules.alias": text_files.alias_lines,
        "modules.symbols": text_files.alias_lines,
        "modules.builtin": text_files.module_paths, "modules.order": text_files.module_paths,
        "modules.builtin.modinfo": text_files.builtin_modinfo, "modules.devname": text_files.devnames,
    }  # fmt: skip
    for number in range(FILES):
        name = list(parsers)[number % len(parsers)]
        _, problems = parsers[name](damaged(TEXTS[name], rng), name)
        assert all(problem.at.file == name and problem.at.line > 0 and problem.expected for problem in problems)


def test_damaged_trees(rng: random.Random) -> None:
    """Fewer, as each is asked whole requests: several files of one tree damaged together."""
    plain = {name: data for name, data in BINS.items() if not name.startswith("34 ")}
    for _ in range(300):
        files = TEXTS | plain
        for name in rng.sample(sorted(files), 4):
            files[name] = damaged(files[name], rng)
        for name in rng.sample(sorted(files), rng.choice((0, 0, 3))):
            del files[name]
        ask_catalog(files)
