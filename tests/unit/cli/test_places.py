"""The same place under every spelling: options that name a root, and paths below it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmodd.cli import explain, lookup, static_nodes
from kmodd.cli.kmod import depmod, insmod, modinfo, modprobe
from kmodd.loader.in_process import Machine
from tests.elf_maker import Maker
from tests.fake_machine import FakeMachine
from tests.tool import Main, ours

RELEASE = "6.1.0-places"


@pytest.fixture(params=["lib/modules", "usr/lib/modules"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The module directory of a root that has no other, without indexes."""
    folder = tmp_path / str(request.param) / RELEASE
    (folder / "kernel").mkdir(parents=True)
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        (folder / name).touch()
    text = [b"name=a", b"alias=x:*", b"alias=devname:a", b"alias=char-major-10-200"]
    (folder / "kernel/a.ko").write_bytes(module(text))
    return folder


def module(strings: list[bytes]) -> bytes:
    """A module file with these strings in .modinfo."""
    return Maker().add(b".modinfo", b"".join(string + b"\0" for string in strings)).image()


@pytest.mark.parametrize("option", ["-b", "--root"])
def test_depmod_finds_the_tree(tree: Path, tmp_path: Path, option: str) -> None:
    said = ours(depmod.main, [option, str(tmp_path), RELEASE])
    assert (said.status, said.err) == (0, b"")
    assert (tree / "modules.dep").read_text() == "kernel/a.ko:\n"
    assert [path.parent for path in tmp_path.rglob("modules.dep")] == [tree]


@pytest.mark.parametrize(
    ("main", "argv", "expected"),
    [
        (modprobe.main, ["-d", "ROOT", "-S", RELEASE, "-D", "a"], b"insmod "),
        (modprobe.main, ["--root", "ROOT", "-S", RELEASE, "-D", "a"], b"insmod "),
        (modprobe.main, ["-d", "ROOT", "-S", RELEASE, "-R", "x:1"], b"a\n"),
        (modinfo.main, ["-b", "ROOT", "-k", RELEASE, "-F", "name", "a"], b"a\n"),
        (modinfo.main, ["--root", "ROOT", "-k", RELEASE, "-F", "name", "a"], b"a\n"),
        (explain.main, ["--root", "ROOT", "--kernel", RELEASE, "a"], "a → 1 step".encode()),
        (explain.main, ["--root", "ROOT", "a"], "a → 1 step".encode()),
        (lookup.main, ["--root", "ROOT", "x:1"], b"x:1\ta\n"),
        (static_nodes.main, ["--root", "ROOT", "--kernel", RELEASE, "-f", "devname"], b"a a c10:200"),
    ],
)
def test_each_tool_finds_the_tree(tree: Path, tmp_path: Path, main: Main, argv: list[str], expected: bytes) -> None:
    assert depmod.main(["-b", str(tmp_path), RELEASE]) == 0
    said = ours(main, [str(tmp_path) if word == "ROOT" else word for word in argv])
    assert said.status == 0
    assert said.out.startswith(expected)
    assert tree.exists()


def test_a_relative_path_is_below_the_working_directory(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--root is the prefix of absolute paths, in all tools."""
    assert depmod.main(["-b", str(tmp_path), tree.name]) == 0
    (tmp_path / "here").mkdir()
    (tmp_path / "here/b.ko").write_bytes(module([b"name=b"]))
    monkeypatch.chdir(tmp_path / "here")
    for path, status in (("./b.ko", 0), ("/here/b.ko", 0), ("./nosuch.ko", 1), (f"{tmp_path}/here/b.ko", 1)):
        base = ["--root", str(tmp_path)]
        assert ours(modinfo.main, [*base, "-F", "name", path]).status == status, path
        assert ours(modprobe.main, [*base, "-S", tree.name, "-n", "-v", path]).status == status, path
        assert ours(explain.main, [*base, "--kernel", tree.name, path]).status == status, path
        assert insmod.main([*base, path], Machine(FakeMachine(tmp_path), lambda _: None)) == status, path
        (tmp_path / "proc/modules").write_text("")
