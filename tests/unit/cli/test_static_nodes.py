"""static-nodes: lines of modules.devname, and the three forms."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmodd.cli import static_nodes
from kmodd.cli.static_nodes import FORMATS, Node, parse
from tests.tool import ours


def test_lines() -> None:
    nodes, bad = parse(b"# a b c1:2\nloop loop-control c10:237\nx y c1\n  a \t b  b3:4 rest\nlast z c5:6")
    assert nodes == [
        Node(b"loop", b"loop-control", b"c", 10, 237), Node(b"a", b"b", b"b", 3, 4), Node(b"last", b"z", b"c", 5, 6)
    ]  # fmt: skip
    assert bad == [b"x y c1\n"]


def test_forms() -> None:
    node = Node(b"snd", b"snd/deep/seq", b"b", 116, 1)
    assert FORMATS["tmpfiles"](node) == b"d /dev/snd/deep 0755 - - -\nb! /dev/snd/deep/seq 0600 - - - 116:1\n"
    assert FORMATS["devname"](node) == b"snd snd/deep/seq b116:1\n"
    assert FORMATS["human"](node).startswith(b"Module: snd\n\tDevice node: /dev/snd/deep/seq\n\t\tType: block device\n")


def test_output_into_a_new_folder(tmp_path: Path) -> None:
    folder = tmp_path / "lib" / "modules" / "1"
    folder.mkdir(parents=True)
    (folder / "modules.devname").write_text("a b c1:2\n")
    place = tmp_path / "x" / "y" / "out"
    said = ours(static_nodes.main, ["--root", str(tmp_path), "--kernel", "1", "-f", "devname", "-o", str(place)])
    assert (said.out, said.err, said.status) == (b"", b"", 0)
    assert place.read_bytes() == b"a b c1:2\n"


@pytest.mark.parametrize("output", ["/dev/null/x", "/proc/nothing/x"])
def test_output_that_cannot_be(tmp_path: Path, output: str) -> None:
    folder = tmp_path / "lib" / "modules" / "1"
    folder.mkdir(parents=True)
    (folder / "modules.devname").write_text("a b c1:2\n")
    said = ours(static_nodes.main, ["--root", str(tmp_path), "--kernel", "1", "-o", output])
    assert said.status == 1
    assert said.err.startswith(b"Error: could not create ")
