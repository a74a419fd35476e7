"""The text indexes: what the parsers keep of them."""

from __future__ import annotations

import pytest

from kmodd.index import text_files
from kmodd.index.text_files import AliasLine, DepLine, Devname, ModinfoEntry
from tests.rootfs import ROOTFS

TREE = ROOTFS / "_tree"


def data(name: str) -> bytes:
    return (TREE / name).read_bytes()


def test_dep_gives_a_line_per_module_and_takes_it_apart_on_demand() -> None:
    lines, problems = text_files.dep_lines(data("modules.dep"), "modules.dep")
    assert problems == ()
    assert len(lines) == 108
    found = text_files.dep_line(lines["crc32c_intel"])  # type: ignore[index]
    assert found == DepLine("kernel/arch/x86/crypto/crc32c-intel.ko", ())
    ext4 = text_files.dep_line(lines["ext4"])  # type: ignore[index]
    assert ext4 is not None
    assert ext4.deps == ("kernel/lib/crc16.ko", "kernel/fs/mbcache.ko", "kernel/fs/jbd2/jbd2.ko")


def test_dep_loses_nothing() -> None:
    lines, _ = text_files.dep_lines(data("modules.dep"), "")
    parsed = [line for text in lines.values() if (line := text_files.dep_line(text))]
    again = "".join(f"{line.path}:{''.join(' ' + dep for dep in line.deps)}\n" for line in parsed)
    assert again.encode() == data("modules.dep")


def test_dep_line_without_colon_is_a_problem_and_the_others_count() -> None:
    lines, problems = text_files.dep_lines(b"a.ko: b.ko\nkernel/cut-of\nb.ko:\n", "modules.dep")
    assert list(lines) == ["a", "b"]
    assert [str(problem) for problem in problems] == ["modules.dep:2: expected `FILE: FILE…`"]
    assert text_files.dep_line("no colon") is None


def test_dep_first_line_of_a_module_counts() -> None:
    assert text_files.dep_lines(b"x/a.ko:\ny/a.ko: b.ko\n", "")[0] == {"a": "x/a.ko:"}


def test_alias_lines_keep_their_spelling_and_number() -> None:
    lines, problems = text_files.alias_lines(b"# head\nalias a-b-* x-y\n\nalias with blank z\n", "modules.alias")
    assert problems == ()
    assert lines == (AliasLine("a-b-*", "x_y", 2), AliasLine("with blank", "z", 4))  # type: ignore[arg-type]


@pytest.mark.parametrize("line", [b"alias pci:v*", b"alias", b"alias ", b"frob a b", b"alias  x"])
def test_alias_line_that_is_cut_off_is_a_problem(line: bytes) -> None:
    lines, problems = text_files.alias_lines(b"alias a b\n" + line, "modules.alias")
    assert len(lines) == 1
    assert [problem.at.line for problem in problems] == [2]


@pytest.mark.parametrize(
    ("name", "head"), [("modules.alias", text_files.ALIAS_HEAD), ("modules.symbols", text_files.SYMBOLS_HEAD)]
)
def test_alias_loses_nothing(name: str, head: str) -> None:
    lines, _ = text_files.alias_lines(data(name), "")
    assert (head + "".join(f"alias {line.pattern} {line.module}\n" for line in lines)).encode() == data(name)


def test_devname_loses_nothing() -> None:
    nodes, problems = text_files.devnames(data("modules.devname"), "")
    assert problems == ()
    lines = [f"{node.module} {node.node} {node.kind}{node.major}:{node.minor}\n" for node in nodes]
    assert (text_files.DEVNAME_HEAD + "".join(lines)).encode() == data("modules.devname")
    assert Devname("fuse", "fuse", "c", 10, 229) in nodes  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "line", [b"fuse fuse", b"fuse fuse c10", b"fuse fuse x1:2", b"fuse fuse c1:", b"a b c1:" + b"9" * 99]
)
def test_devname_line_that_is_wrong_is_a_problem(line: bytes) -> None:
    nodes, problems = text_files.devnames(line, "modules.devname")
    assert nodes == ()
    assert len(problems) == 1


def test_builtin_and_order_are_paths() -> None:
    paths, problems = text_files.module_paths(data("modules.builtin"), "")
    assert problems == ()
    assert paths[0] == "kernel/arch/x86/events/amd/amd-uncore.ko"
    assert text_files.module_paths(b"kernel/a.ko\nkernel/b\n", "modules.order")[1][0].at.line == 2


def test_builtin_modinfo_is_nul_separated() -> None:
    entries, problems = text_files.builtin_modinfo(b"a-b.alias=x=y\0a-b.license=GPL\0bad\0.x=1\0", "f")
    assert entries == (ModinfoEntry("a_b", "alias", "x=y"), ModinfoEntry("a_b", "license", "GPL"))  # type: ignore[arg-type]
    assert [problem.at.line for problem in problems] == [3, 4]
