"""A tree whose index files are empty after a power cut: every verb and tool says so, and says `depmod`."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmodd.cli import devices, explain, lint, lookup, policy
from kmodd.cli.kmod import modinfo, modprobe
from tests import rootfs
from tests.rootfs import RELEASE
from tests.tool import Main, ours

VERBS: dict[str, tuple[Main, list[str]]] = {
    "explain": (explain.main, ["--root", "ROOT", "--kernel", RELEASE, "ext4"]),
    "lookup": (lookup.main, ["--root", "ROOT", "--kernel", RELEASE, "ext4"]),
    "devices": (devices.main, ["--root", "ROOT", "--kernel", RELEASE]),
    "lint": (lint.main, ["--root", "ROOT", "--kernel", RELEASE]),
    "policy": (policy.main, ["test", "--root", "ROOT", "--kernel", RELEASE, "ext4"]),
}
TOOLS: dict[str, tuple[Main, list[str]]] = {
    "modprobe -D": (modprobe.main, ["-D", "--root", "ROOT", "-S", RELEASE, "ext4"]),
    "modprobe -R": (modprobe.main, ["-R", "--root", "ROOT", "-S", RELEASE, "ext4"]),
    "modprobe -n": (modprobe.main, ["-n", "-v", "--root", "ROOT", "-S", RELEASE, "ext4"]),
    "modinfo": (modinfo.main, ["--root", "ROOT", "-k", RELEASE, "ext4"]),
}
OF_DEPMOD = ("modules.dep", "modules.alias", "modules.symbols")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return rootfs.build("names", tmp_path)


def empty(root: Path, *names: str) -> None:
    for name in names:
        (root / "lib/modules" / RELEASE / name).write_bytes(b"")


def run(program: tuple[Main, list[str]], root: Path) -> rootfs.Said:
    main, argv = program
    return ours(main, [word.replace("ROOT", str(root)) for word in argv])


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_exits_with_3(verb: str, root: Path) -> None:
    whole = run(VERBS[verb], root)
    assert whole.status == 0, "the control"
    assert b"depmod" not in whole.err
    empty(root, *OF_DEPMOD)
    said = run(VERBS[verb], root)
    assert said.status == 0, "the .bin files are good"
    assert said.out == whole.out or verb == "explain"  # which names the line of the text
    empty(root, *(f"{name}.bin" for name in OF_DEPMOD))
    said = run(VERBS[verb], root)
    assert (said.status, said.out) == (3, b"")
    assert b"modules.dep: empty; run depmod" in said.err


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_exits_as_kmod(tool: str, root: Path) -> None:
    (root / "lib/modules" / RELEASE / "kernel/fs/ext4/ext4.ko").write_bytes(b"\x7fELF")
    whole = run(TOOLS[tool], root)
    empty(root, *(f"{name}.bin" for name in OF_DEPMOD))
    said = run(TOOLS[tool], root)
    assert (said.status, said.out) == (whole.status, whole.out), "the texts are good"
    empty(root, *OF_DEPMOD)
    said = run(TOOLS[tool], root)
    assert said.status == 1
    assert b"not found" in said.err
    assert b"modules.dep: empty; run depmod" in said.err


@pytest.mark.parametrize("verb", ["explain", "lookup"])
def test_no_match_in_an_empty_alias_index_is_no_answer(verb: str, root: Path) -> None:
    main, argv = VERBS[verb]
    assert run((main, [*argv[:-1], "nosuch:alias"]), root).status == 1, "the control"
    empty(root, "modules.alias", "modules.alias.bin")
    said = run((main, [*argv[:-1], "nosuch:alias"]), root)
    assert said.status == 3
    assert b"modules.alias: empty; run depmod" in said.err
    assert run((main, argv), root).status == 0, "a module is found by its name"


def test_a_tree_with_everything_built_in_is_whole(root: Path) -> None:
    """kmod's depmod writes a modules.dep of no bytes for it."""
    tree = root / "lib/modules" / RELEASE
    for path in [*tree.rglob("*.ko*"), *tree.glob("*.bin")]:
        path.unlink()
    (tree / "modules.dep").write_bytes(b"")
    (tree / "modules.alias").write_text("# Aliases extracted from modules themselves.\n")
    (tree / "modules.symbols").write_text("# Aliases for symbols, used by symbol_request().\n")
    said = run((lookup.main, ["--root", "ROOT", "--kernel", RELEASE, "serio"]), root)
    assert (said.out, said.err, said.status) == (b"serio\tserio\n", b"", 0)
    said = run((modprobe.main, ["-D", "--root", "ROOT", "-S", RELEASE, "serio"]), root)
    assert (said.out, said.err, said.status) == (b"builtin serio\n", b"", 0)
