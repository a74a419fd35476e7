"""Index files after a power cut: empty, cut at a block, or zeros. The good form is used; without one, it is said."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kmodd.index.catalog import Catalog
from kmodd.index.layer import Layer
from tests.rootfs import ROOTFS, twins

TEXTS = {path.name: path.read_bytes() for path in (ROOTFS / "_tree").iterdir()}
BINS = twins(ROOTFS / "_tree")
BOTH = TEXTS | BINS
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
}
INDEXES = ("modules.dep", "modules.alias", "modules.symbols")


def catalog(files: dict[str, bytes], like_kmod: bool = False, has_modules: bool = True) -> Catalog:
    return Catalog([Layer("/lib/modules/1", files.get, has_modules=lambda: has_modules)], like_kmod)


def answers(found: Catalog) -> tuple[object, ...]:
    """Something from each index, its last entries too."""
    symbol, module = TEXTS["modules.symbols"].decode().splitlines()[-1].split()[1:]
    last = TEXTS["modules.dep"].decode().splitlines()[-1].partition(":")[0].rpartition("/")[2].partition(".")[0]
    return (
        found.dep("ext4"), found.dep(last.replace("-", "_")), [match.module for match in found.aliases("fs_ext4")],
        [match.module for match in found.symbols(symbol)] == [module],
    )  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("suffix", ["", ".bin"])
@pytest.mark.parametrize("like_kmod", [False, True])
def test_the_good_form_is_used(damage: str, suffix: str, like_kmod: bool) -> None:
    files = BOTH | {name + suffix: DAMAGES[damage](BOTH[name + suffix]) for name in INDEXES}
    found = catalog(files, like_kmod)
    assert answers(found) == answers(catalog(BOTH))
    assert not found.is_damaged
    reported = {problem.at.file for problem in found.problems}
    is_read = (suffix == ".bin") == like_kmod
    assert reported == ({name + suffix for name in INDEXES} if is_read else set())
    assert all(str(problem).endswith("; run depmod") for problem in found.problems)
    assert catalog(BOTH).problems == (), "the control"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", INDEXES)
@pytest.mark.parametrize("has_bin", [False, True])
def test_without_a_good_form_it_is_said(damage: str, name: str, has_bin: bool) -> None:
    names = [name, name + ".bin"] if has_bin else [name]
    files = (BOTH if has_bin else TEXTS) | {each: DAMAGES[damage](BOTH[each]) for each in names}
    found = catalog(files)
    answers(found)
    assert found.is_damaged
    assert name in {problem.at.file for problem in found.problems}


def test_the_last_line_of_a_cut_text_is_not_believed() -> None:
    """It may name another module, or lack dependencies."""
    found = catalog(
        {"modules.dep": b"kernel/a.ko:\nkernel/b.ko: kernel/a.k", "modules.alias": b"alias x a\nalias y ab"}
    )
    assert found.names() == ("a",)
    assert [match.module for match in found.aliases("x")] == ["a"]
    assert found.aliases("y") == ()
    assert [str(problem) for problem in found.problems] == [
        "modules.dep:2: ends in the middle of a line; run depmod",
        "modules.alias:2: ends in the middle of a line; run depmod",
    ]


def test_the_kernels_own_files_are_not_made_by_depmod() -> None:
    found = catalog({"modules.builtin": b"kernel/a.ko\nkernel/b.k"})
    assert found.is_builtin("a")
    assert not found.is_builtin("b")
    assert [str(problem) for problem in found.problems] == [
        "modules.builtin:2: ends in the middle of a line; reinstall the kernel"
    ]


@pytest.mark.parametrize("with_bins", [False, True])
def test_an_empty_index_of_a_tree_without_modules_is_whole(with_bins: bool) -> None:
    """All is built in: depmod writes a modules.dep of no bytes. Module files, or aliases of some, show the damage."""
    empty = {"modules.dep": b"", "modules.alias": b"# Aliases extracted from modules themselves.\n"}
    built_in = empty | {"modules.builtin": TEXTS["modules.builtin"]}
    if with_bins:
        built_in |= {"modules.dep.bin": bytes.fromhex("b007f457 00020001 00000000")}
    found = catalog(built_in, has_modules=False)
    assert found.dep("ext4") is None
    assert found.aliases("fs_ext4") == ()
    assert found.is_builtin("serio")
    assert (found.problems, found.is_damaged) == ((), False)
    for damaged in (catalog(empty), catalog(TEXTS | {"modules.dep": b""}, has_modules=False)):
        assert damaged.dep("ext4") is None
        assert damaged.is_damaged
        assert str(damaged.problems[0]) == "modules.dep: empty; run depmod"
