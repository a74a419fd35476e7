"""Our depmod and kmod 30's: equal files, equal words, equal status; what only kmod 34 has, as its depmod does it.

Full Debian trees, plain and xz, and the situations of depmod_cases.py. What may differ is named at the test.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kmodd.cli import depmod
from tests import compiled, trees
from tests.differential import depmod_cases as cases
from tests.differential.depmod_cases import CASES, RELEASE, Case
from tests.differential.kmod_peer import KmodPeer, kmod_30, kmod_34
from tests.rootfs import Said
from tests.tool import contents, difference, ours

pytestmark = [pytest.mark.differential, pytest.mark.timeout(240)]

FLAVOURS = {"6.1-amd64": (4000, 26000), "6.1-cloud-amd64": (1000, 2000), "6.12-amd64": (4000, 26000)}
"""Flavour → modules and alias lines that its tree has at least."""
KMOD_30_FILES = 10
OURS_ALONE = ("modules.weakdep", "modules.kmodd-cache")


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> KmodPeer:
    return kmod_30(tmp_path_factory.mktemp("peer"))


@pytest.fixture(scope="module")
def peer_34(tmp_path_factory: pytest.TempPathFactory) -> KmodPeer:
    try:
        return kmod_34(tmp_path_factory.mktemp("peer34"))
    except trees.Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def modules() -> Path:
    return compiled.modules()


def compare_files(theirs: dict[str, bytes], mine: dict[str, bytes], ignored: tuple[str, ...] = OURS_ALONE) -> list[str]:
    """The names of the files that differ, or that only one of them wrote."""
    names = (theirs.keys() | mine.keys()) - set(ignored)
    return sorted(name for name in names if theirs.get(name) != mine.get(name))


def without_weakdeps(said: Said) -> Said:
    """What -n shows, less the text that kmod 30 does not know."""
    lines = [line for line in said.out.splitlines(keepends=True) if not line.startswith((b"# Weak ", b"weakdep "))]
    return Said(b"".join(lines), said.err, said.status)


def linked_tree(flavour: str, root: Path) -> Path:
    """A module directory of one's own, whose modules are those of a Debian tree. Skips where 6.12 cannot be had."""
    try:
        tree = trees.debian_tree(flavour)
    except trees.Unavailable as error:
        if flavour.startswith("6.1-"):
            raise
        pytest.skip(str(error))
    source = trees.module_dir(tree)
    directory = root / "lib" / "modules" / source.name
    directory.mkdir(parents=True)
    (directory / "kernel").symlink_to(source / "kernel")
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        shutil.copy(source / name, directory)
    return directory


# ── full trees ───────────────────────────────────────────────────────────────────────────────────────────────────────


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
    assert len(theirs) == KMOD_30_FILES + 3
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


@pytest.mark.parametrize("flavour", ["6.1-cloud-amd64", "6.12-amd64"])
def test_weakdep_is_that_of_34(peer_34: KmodPeer, modules: Path, flavour: str, tmp_path: Path) -> None:
    directory = linked_tree(flavour, tmp_path)
    shutil.copy(modules / "aliases-many.ko", directory)
    command = ["-b", str(tmp_path), directory.name]
    assert peer_34.run(command, name="depmod").status == 0
    theirs = contents(directory)
    assert ours(depmod.main, command).status == 0
    mine = contents(directory)
    texts = [name for name in theirs if not name.endswith(".bin")]
    assert [name for name in texts if theirs[name] != mine[name]] == []
    assert b"\nweakdep aliases_many mod2\n" in mine["modules.weakdep"]
    assert len(texts) >= 9


# ── situations ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_situation(peer: KmodPeer, modules: Path, case: Case, tmp_path: Path) -> None:
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
        assert difference(theirs, without_weakdeps(mine)) == "", command
        assert compare_files(their_files, my_files) == [], command


def test_there_are_situations() -> None:
    assert len(CASES) >= 35
    assert sum(len(case.commands) for case in CASES) >= 115
