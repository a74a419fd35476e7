"""`static-nodes`: print the device nodes of modules.devname, as `kmod static-nodes` of kmod 30 does."""

from __future__ import annotations

import io
import os
import re
import sys

from kmodd.cli.options import OptionError, Options
from kmodd.dataclass import dataclass
from kmodd.host.paths import TREES
from kmodd.host.regular_files import read_regular
from kmodd.text import unsigned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_LONG = {"output": "o:", "format": "f:", "help": "h", "root": "root:", "kernel": "kernel:"}

HELP = """\
Usage:
\tkmod static-nodes [options]

kmod static-nodes outputs the static-node information of the currently running kernel.

Options:
\t-f, --format=FORMAT  choose format to use: see "Formats"
\t-o, --output=FILE    write output to file
\t-h, --help           show this help

Formats:
\thuman        (default) a human readable format. Do not parse.
\ttmpfiles     the tmpfiles.d(5) format used by systemd-tmpfiles.
\tdevname      the modules.devname format.
"""


@dataclass(frozen=True, slots=True)
class Node:
    """One line of modules.devname."""

    module: bytes
    name: bytes
    """Path below /dev."""
    kind: bytes
    """`c` or `b`."""
    major: int
    minor: int


def _human(node: Node) -> bytes:
    kind = b"character" if node.kind == b"c" else b"block"
    return (
        b"Module: %s\n\tDevice node: /dev/%s\n\t\tType: %s device\n\t\tMajor: %d\n\t\tMinor: %d\n"
        % (node.module, node.name, kind, node.major, node.minor)
    )  # fmt: skip


def _tmpfiles(node: Node) -> bytes:
    folder, slash, _ = node.name.rpartition(b"/")
    line = b"%s! /dev/%s 0600 - - - %d:%d\n" % (node.kind, node.name, node.major, node.minor)
    return b"d /dev/%s 0755 - - -\n%s" % (folder, line) if slash else line


def _devname(node: Node) -> bytes:
    return b"%s %s %s%d:%d\n" % (node.module, node.name, node.kind, node.major, node.minor)


FORMATS: dict[str, Callable[[Node], bytes]] = {"human": _human, "tmpfiles": _tmpfiles, "devname": _devname}

_LINE = re.compile(rb"\s*(\S+)\s+(\S+)\s+([cb])\s*([+-]?\d+):\s*([+-]?\d+)")
"""The fields as sscanf(3) reads them: any whitespace separates, trailing text is ignored."""
_MAX_LINE = 4095
"""Bytes that kmod reads per line; a longer line is several lines."""


def main(argv: list[str]) -> int:
    """Print the nodes; return 0 or 1.

    argv: the command line without the program's name.
    """
    output, form, root, release = "/dev/stdout", "human", "", ""
    options = Options(argv, "o:f:h", _LONG)
    try:
        for code, value in options:
            match code:
                case "o":
                    output = value
                case "f" if value in FORMATS:
                    form = value
                case "f":
                    sys.stderr.write(f"Unknown format: '{value}'.\n")
                    sys.stderr.flush()
                    sys.stdout.write(HELP)
                    return 1
                case "root":
                    root = value.rstrip("/")
                case "kernel":
                    release = value
                case _:
                    sys.stdout.write(HELP)
                    return 0
    except OptionError as error:
        sys.stderr.write(f"static-nodes: {error}\n")
        return 1
    release = release or os.uname().release
    tree = next((tree for tree in TREES if os.path.isdir(f"{root}{tree}/{release}")), TREES[0])
    path = f"{tree}/{release}/modules.devname"
    try:
        data = read_regular(root + path)
    except FileNotFoundError:
        sys.stderr.write(f"Warning: {path} not found - ignoring\n")
        return 0
    except OSError as error:
        sys.stderr.write(f"Error: could not open {path} - {error.strerror}\n")
        return 1
    nodes, bad = parse(data)
    try:
        _write(output, b"".join(map(FORMATS[form], nodes)))
    except OSError as error:
        sys.stderr.write(f"Error: could not create {output} - {error.strerror}\n")
        return 1
    for line in bad:
        sys.stderr.buffer.write(b"Error: invalid devname entry: " + line)
    return 1 if bad else 0


def parse(data: bytes) -> tuple[list[Node], list[bytes]]:
    """Return the nodes of a modules.devname file, and the invalid lines."""
    nodes = []
    bad = []
    for line in io.BytesIO(data):
        for start in range(0, len(line), _MAX_LINE):
            piece = line[start : start + _MAX_LINE]
            if piece.startswith(b"#"):
                continue
            match = _LINE.match(piece.partition(b"\0")[0])
            if match is None:
                bad.append(piece)
                continue
            major, minor = map(unsigned, match.groups()[3:])
            nodes.append(Node(match[1], match[2], match[3], major, minor))
    return nodes, bad


def _write(output: str, data: bytes) -> None:
    """Write to standard output, or to a file whose directory is created if missing. Raises OSError."""
    if output == "/dev/stdout":
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        return
    folder = os.path.dirname(output)
    if folder:
        os.makedirs(folder, 0o755, exist_ok=True)
    with open(output, "wb") as file:
        file.write(data)
