"""depmod beside kmod 34's and 30's: equal files, messages and status.

Full Debian trees, plain and xz, and the situations of depmod_cases.py. What may differ is a row of DIFFERENT. The .bin
files of kmod 30 have another layout, and are compared by their entries.
"""

from __future__ import annotations

import gzip
import lzma
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from kmodd.cli.kmod import depmod
from kmodd.index.bin_reader import BinIndex
from tests import compiled, trees
from tests.differential import depmod_cases as cases
from tests.differential.depmod_cases import CASES, Case, Place, course
from tests.differential.kmod_peer import KmodPeer, kmod_30, kmod_34, without_decompressor
from tests.elf_maker import GLOBAL, UNDEFINED, Maker
from tests.rootfs import Said
from tests.tool import contents, difference, ours

pytestmark = [pytest.mark.differential, pytest.mark.timeout(900)]

FLAVOURS = {"6.1-amd64": (4000, 26000), "6.1-cloud-amd64": (1000, 2000), "6.12-amd64": (4000, 26000)}
"""Flavour → modules and alias lines that its tree has at least."""
KMOD_FILES = 11
OURS_ALONE = ("modules.kmodd-cache",)
NOT_OF_30 = (*OURS_ALONE, "modules.weakdep")
_IGNORED = "options that kmod 30 ignores"
DIFFERENT: Mapping[tuple[int, str, str], str] = {
    (30, "command line", "-h"): "-h",
    (34, "command line", "--map VERSION"): _IGNORED,
    (34, "command line", "-u -q -r VERSION"): _IGNORED,
    (34, "command line", "--quiet --unresolved-error VERSION"): _IGNORED,
    **{(30, "twice_in_order", command): "a module twice in modules.order" for command in Case("", course).commands},
    **{(30, "versions", command): "a name in `__versions` without a NUL" for command in Case("", course).commands},
    **{(30, "cut_zstd", command): "a zstd file that is cut off" for command in Case("", course).commands},
    **{(34, "odd_zstd", command): "zstd without a size, or in frames" for command in Case("", course).commands},
}
"""Version of kmod, case and command → the row of docs/COMPAT.md."""
BOTH = pytest.mark.parametrize(("name", "version"), [("peer", 34), ("peer_30", 30)])


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> KmodPeer:
    with trees.may_be_away():
        return kmod_34(tmp_path_factory.mktemp("peer"))


@pytest.fixture(scope="module")
def peer_30(tmp_path_factory: pytest.TempPathFactory) -> KmodPeer:
    return kmod_30(tmp_path_factory.mktemp("peer30"))


@pytest.fixture(scope="module")
def modules() -> Path:
    return compiled.modules()


def compare_files(theirs: dict[str, bytes], mine: dict[str, bytes], ignored: tuple[str, ...] = OURS_ALONE) -> list[str]:
    """The names of the files that differ, or that only one of them wrote."""
    names = (theirs.keys() | mine.keys()) - set(ignored)
    return sorted(name for name in names if theirs.get(name) != mine.get(name))


def entries(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files with the entries of a .bin in place of its bytes, which depend on the layout."""
    return {
        name: repr(list(BinIndex(data, name).entries())).encode() if name.endswith(".bin") and data else data
        for name, data in files.items()
    }


def without_weakdeps(said: Said) -> Said:
    """Output of -n without the files that kmod 30 does not write."""
    lines = [line for line in said.out.splitlines(keepends=True) if not line.startswith((b"# Weak ", b"weakdep "))]
    return Said(b"".join(lines), said.err, said.status)


def linked_tree(flavour: str, root: Path) -> Path:
    """A module directory of one's own, whose modules are those of a Debian tree. Skips where 6.12 cannot be had."""
    with trees.may_be_away(flavour):
        tree = trees.debian_tree(flavour)
    source = trees.module_dir(tree)
    directory = root / "lib" / "modules" / source.name
    directory.mkdir(parents=True)
    (directory / "kernel").symlink_to(source / "kernel")
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        shutil.copy(source / name, directory)
    return directory


# ── full trees ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_full_tree_of_30(peer_30: KmodPeer, tmp_path: Path) -> None:
    """The same texts, and the same entries in the .bin files."""
    directory = linked_tree("6.1-cloud-amd64", tmp_path)
    command = ["-b", str(tmp_path), directory.name]
    assert peer_30.run(command, name="depmod") == Said(b"", b"", 0)
    theirs = contents(directory)
    assert ours(depmod.main, command) == Said(b"", b"", 0)
    mine = contents(directory)
    assert compare_files(entries(theirs), entries(mine), NOT_OF_30) == []
    assert theirs["modules.alias.bin"] != mine["modules.alias.bin"]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_full_tree(peer: KmodPeer, flavour: str, tmp_path: Path) -> None:
    directory = linked_tree(flavour, tmp_path)
    command = ["-b", str(tmp_path), directory.name]
    assert peer.run(command, name="depmod") == Said(b"", b"", 0)
    theirs = contents(directory)
    for name in theirs:
        if name not in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
            (directory / name).unlink()
    assert ours(depmod.main, command) == Said(b"", b"", 0)
    mine = contents(directory)
    assert compare_files(theirs, mine) == []
    assert len(theirs) == KMOD_FILES + 3
    assert theirs["modules.dep"].count(b"\n") >= FLAVOURS[flavour][0]
    assert theirs["modules.alias"].count(b"\n") >= FLAVOURS[flavour][1]

    # once more, out of the cache, and with a module more: the same bytes as from nothing
    again = ours(depmod.main, command)
    assert (again, compare_files(mine, contents(directory), ())) == (Said(b"", b"", 0), [])
    shutil.copy(compiled.modules() / "mod2.ko", directory)
    assert ours(depmod.main, command) == Said(b"", b"", 0)
    cached = contents(directory)
    assert b"mod2.ko:" in cached["modules.dep"]
    assert peer.run(command, name="depmod") == Said(b"", b"", 0)
    assert compare_files(contents(directory), cached) == []


# ── situations ───────────────────────────────────────────────────────────────────────────────────────────────────────


@BOTH
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_situation(
    case: Case, name: str, version: int, request: pytest.FixtureRequest, modules: Path, tmp_path: Path
) -> None:
    peer: KmodPeer = request.getfixturevalue(name)
    place = cases.build(case, tmp_path / "root", modules)
    before = contents(place.directory)
    for command in case.commands:
        words = cases.words(command, place)
        theirs = peer.run(words, name="depmod")
        their_files = contents(place.directory)
        cases.reset(place, before)
        mine = ours(depmod.main, words)
        my_files = contents(place.directory)
        cases.reset(place, before)
        if version == 30:
            found = compare_files(entries(their_files), entries(my_files), NOT_OF_30)
            found += filter(None, [difference(theirs, without_weakdeps(mine))])
        else:
            found = compare_files(their_files, my_files)
            found += filter(None, [difference(theirs, mine)])
        if row := DIFFERENT.get((version, case.name, command)):
            assert found, f"{command!r} is equal: the row {row!r} is no longer needed"
        else:
            assert found == [], command


def test_every_row_is_in_compat() -> None:
    text = (Path(__file__).parents[2] / "docs" / "COMPAT.md").read_text()
    assert [row for row in DIFFERENT.values() if f"| {row} |" not in text] == []


def test_the_reason_of_a_decompressor_is_left_out_of_34s_messages(peer: KmodPeer, tmp_path: Path) -> None:
    """The row "the reason of a decompressor": the only change that the comparison makes to messages of kmod 34."""
    text = (
        b"libkmod: ERROR: xz_uncompress_belch: xz: File is corrupt\ndepmod: ERROR: zstd: x\ndepmod: ERROR: a zstd: y\n"
    )
    assert without_decompressor(text) == b"depmod: ERROR: a zstd: y\n"
    file = tmp_path / "x.ko.xz"
    file.write_bytes(lzma.compress(bytes(9999))[:80])
    assert (
        peer.run([str(file)], name="modinfo").err
        == b"modinfo: ERROR: could not get modinfo from 'x': Invalid argument\n"
    )


def test_there_are_situations() -> None:
    assert len(CASES) >= 42
    assert sum(len(case.commands) for case in CASES) >= 120


def test_a_flipped_byte_is_a_difference(peer: KmodPeer, modules: Path, tmp_path: Path) -> None:
    """The control of all comparisons of files here."""
    place = cases.build(CASES[0], tmp_path / "root", modules)
    words = cases.words("VERSION", place)
    assert peer.run(words, name="depmod").status == 0
    theirs = contents(place.directory)
    cases.reset(place, {})
    cases.course(place)
    assert ours(depmod.main, words).status == 0
    mine = contents(place.directory)
    assert compare_files(theirs, mine) == []
    for name, data in mine.items():
        if name in theirs:
            flipped = bytes((data[0] ^ 1,)) + data[1:] if data else b"x"
            assert compare_files(theirs, mine | {name: flipped}) == [name]


def test_damaged_modules(peer: KmodPeer, modules: Path, tmp_path: Path, rng: random.Random) -> None:
    """A hundred modules with a few bent bytes each: the same index, the same complaints, name by name."""
    place = Place(tmp_path / "root", modules)
    place.build_files()
    sources = [(modules / f"{name}.ko").read_bytes() for name in ("mod1", "mod2", "aliases-many")]
    for number in range(100):
        place.write(f"kernel/damaged{number}.ko", _damaged(rng.choice(sources), rng))
    words = cases.words("VERSION", place)
    for path in sorted(place.directory.glob("kernel/damaged*.ko")):
        alone = [*words, str(path)]
        # kmod crashes on a few; where a name is not ASCII it writes beyond its table, and we stop with its own words.
        if peer.run(alone, name="depmod").status < 0 or b"only 7-bit ASCII" in ours(depmod.main, alone).err:
            path.unlink()
    theirs = peer.run(words, name="depmod")
    assert theirs.status >= 0
    their_files = contents(place.directory)
    mine = ours(depmod.main, words)
    assert difference(theirs, mine) == ""
    assert compare_files(their_files, contents(place.directory)) == []
    assert theirs.err.count(b"failed to load symbols") > 0
    assert their_files["modules.dep"].count(b"\n") >= 80


def random_graph(count: int, rng: random.Random) -> list[list[int]]:
    """Who needs whom: any, in one direction; among those in the middle perhaps a ring.

    Nothing that a ring needs leads into a ring again: kmod would walk around for ever there.
    """
    needs = [rng.sample(range(number), rng.randrange(min(number, 4) + 1)) for number in range(count)]
    if rng.random() < 0.5:
        middle = rng.sample(range(count // 3, 2 * count // 3 + 1), rng.randint(1, count // 3))
        for number in range(count // 3, count):
            needs[number] = [other for other in needs[number] if other < count // 3 or number > 2 * count // 3]
        for one, other in zip(middle, middle[1:] + middle[:1], strict=True):
            needs[one].insert(rng.randrange(len(needs[one]) + 1), other)
    return needs


def test_random_graphs(peer: KmodPeer, modules: Path, tmp_path: Path, rng: random.Random) -> None:
    """Made-up modules that need each other at random: the same order, or the same cycles by name."""
    cyclic = compared = 0
    for turn in range(40):
        place = Place(tmp_path / f"root{turn}", modules)
        place.build_files()
        graph = random_graph(rng.choice((3, 8, 40)), rng)
        listed = rng.sample(range(len(graph)), len(graph) // 2)
        place.write("modules.order", "".join(f"kernel/m{number}.ko\n" for number in listed))
        for number, needs in enumerate(graph):
            maker = Maker().add(b"__ksymtab_strings", b"s%d\0t%d\0shared\0" % (number, number))
            maker.symbols(*((b"%c%d" % (rng.choice(b"st"), other), GLOBAL, UNDEFINED, 0) for other in needs))
            place.write(f"kernel/m{number}.ko", maker.image())
        words = cases.words("-v VERSION", place)
        theirs = peer.run(words, name="depmod")
        their_files = contents(place.directory)
        if theirs.err.endswith(b"Assertion `is < stack_size' failed.\n"):
            continue  # kmod counted on fewer ways
        compared += 1
        for name in ("modules.dep", "modules.dep.bin"):
            (place.directory / name).unlink(missing_ok=True)
        mine = ours(depmod.main, words)
        assert difference(theirs, mine) == ""
        assert compare_files(their_files, contents(place.directory)) == []
        cyclic += theirs.status
    assert compared >= 30
    assert 0 < cyclic < compared


def _damaged(data: bytes, rng: random.Random) -> bytes:
    """Change a few bytes in the header, the section table or the symbols, or cut the end off."""
    image = bytearray(data)
    table = int.from_bytes(data[40:48], "little")
    for _ in range(rng.randint(1, 4)):
        start, end = rng.choice(((0, 64), (table, len(data)), (len(data) // 2, len(data))))
        image[rng.randrange(start, end)] = rng.randrange(256)
    return bytes(image[: rng.randrange(len(image))] if rng.random() < 0.1 else image)


# ── options of our own, and of 34 ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "options", ["-o {root}/out", "-m /opt/mods", "-m opt/mods -o {root}/out", "-A", "-o {root}/x/y"]
)
def test_options_of_34(peer: KmodPeer, modules: Path, tmp_path: Path, options: str) -> None:
    """-m and -o: where files are read from and written to."""
    place = cases.build(CASES[0], tmp_path / "root", modules)
    (place.root / "opt").mkdir()
    shutil.copytree(place.root / "lib" / "modules", place.root / "opt" / "mods")
    words = cases.words(f"{options} VERSION", place)
    before = _everything(place.root)
    theirs = peer.run(words, name="depmod")
    their_files = _everything(place.root)
    for path in their_files.keys() - before.keys():
        (place.root / path).unlink()
    mine = ours(depmod.main, words)
    my_files = _everything(place.root)
    assert difference(theirs, mine) == ""
    new = [path for path in their_files if path not in before]
    assert len(new) == 11
    assert sorted(path for path in my_files if path not in before and "kmodd-cache" not in path) == sorted(new)
    assert [path for path in new if their_files[path] != my_files[path]] == []


def _everything(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_root_is_a_prefix_that_is_not_printed(peer: KmodPeer, modules: Path, tmp_path: Path) -> None:
    """`--root DIR` does what -b does, but messages leave DIR out, and depmod.d is below it too."""
    place = cases.build(next(case for case in CASES if case.name == "broken"), tmp_path / "root", modules)
    place.write("/etc/depmod.d/a.conf", "exclude mod1.ko\nfrob\n")
    with_base = peer.run(["-b", str(place.root), "-C", f"{place.root}/etc/depmod.d", cases.RELEASE], name="depmod")
    their_files = contents(place.directory)
    mine = ours(depmod.main, ["--root", str(place.root), cases.RELEASE])
    bare = Said(with_base.out, with_base.err.replace(str(place.root).encode(), b""), with_base.status)
    assert difference(bare, mine) == ""
    assert compare_files(their_files, contents(place.directory)) == []
    assert b"/etc/depmod.d/a.conf:2: ignoring bad line" in mine.err


def test_quick(peer: KmodPeer, modules: Path, tmp_path: Path) -> None:
    """-A works only if a module is newer than modules.dep."""
    place = cases.build(CASES[0], tmp_path / "root", modules)
    words = cases.words("-A VERSION", place)
    dep = place.directory / "modules.dep"
    for age in (-100, 100):
        for who in ("kmod", "kmodd"):
            dep.write_text("old\n")
            for path in place.directory.rglob("*.ko"):
                os.utime(path, (1e9, 1e9))
            os.utime(place.directory / "kernel" / "mod1.ko", (2e9, 2e9))
            os.utime(dep, (2e9 + age, 2e9 + age))
            said = peer.run(words, name="depmod") if who == "kmod" else ours(depmod.main, words)
            assert said == Said(b"", b"", 0)
            assert (dep.read_text() == "old\n") == (age > 0)


# ── what differs on purpose: rows of docs/COMPAT.md ──────────────────────────────────────────────────────────────────


def test_gzip_is_read_where_debian_leaves_it_out(peer: KmodPeer, modules: Path, tmp_path: Path) -> None:
    place = cases.build(CASES[0], tmp_path / "root", modules)
    place.write("kernel/packed.ko.gz", gzip.compress((modules / "mod1.ko").read_bytes()))
    words = cases.words("VERSION", place)
    peer.run(words, name="depmod")
    assert b"packed" not in (place.directory / "modules.dep").read_bytes()
    assert ours(depmod.main, words) == Said(b"", b"", 0)
    assert b"kernel/packed.ko.gz:" in (place.directory / "modules.dep").read_bytes()
    assert peer.run(["-V"], name="depmod").out.replace(b"-ZLIB", b"+ZLIB") == ours(depmod.main, ["-V"]).out


def test_a_link_up_the_tree_is_followed_once(modules: Path, tmp_path: Path) -> None:
    """kmod walks it until there are no descriptors or no names left, some 40 times over."""
    place = cases.build(CASES[0], tmp_path / "root", modules)
    (place.directory / "kernel" / "up").symlink_to("..")
    said = ours(depmod.main, cases.words("VERSION", place))
    assert said == Said(b"", b"depmod: ERROR: openat(4, up, O_RDONLY): Too many levels of symbolic links\n", 0)


def test_a_name_beyond_ascii_is_refused(modules: Path, tmp_path: Path) -> None:
    """Where char is signed, kmod's own check misses it and it crashes."""
    place = cases.build(CASES[0], tmp_path / "root", modules)
    before = contents(place.directory)
    place.put("bare", "kernel/b\xe4r.ko")
    said = ours(depmod.main, cases.words("VERSION", place))
    assert said.status == 1
    assert said.err.startswith(b"depmod: FATAL: Module index: bad character '\xc3'=0xc3 - only 7-bit ASCII")
    assert contents(place.directory) == before
