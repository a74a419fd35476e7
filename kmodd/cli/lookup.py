"""`kmodd lookup`: print the modules that match each alias, as `modprobe -R` does, without duplicates."""

from __future__ import annotations

import os
import sys

from kmodd.cli.options import OptionError, Options
from kmodd.cli.streams import output_is_lost
from kmodd.errors import NoTree
from kmodd.host.tree import Tree
from kmodd.index.catalog import Snapshot, lookup_or_nothing
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 4096
"""Maximum bytes of an alias."""
_FEW = 8
"""Up to so many aliases are looked up in the .bin files; for more, building a trie from the text files pays."""

USAGE = """usage: kmodd lookup [--root DIR] [--kernel RELEASE] [ALIAS…]

Print for each alias, module or modalias a line: the alias, a TAB, and the matching modules, best first.
Without ALIAS, read aliases from standard input, one per line. Blacklists are ignored.
Exit status: 0 all aliases matched, 1 one did not, 2 usage, 3 no module tree or a damaged index.
"""


def main(argv: list[str]) -> int:
    """Look up the arguments, or the lines of standard input; return the exit status in USAGE."""
    options = Options(argv, "h", {"root": "root:", "kernel": "kernel:", "help": "h"})
    root, release = "", None
    try:
        for code, value in options:
            match code:
                case "root":
                    root = value
                case "kernel":
                    release = value
                case _:
                    print(USAGE, end="")
                    return 0
    except OptionError as error:
        print(f"kmodd lookup: {error}\n{USAGE}", end="", file=sys.stderr)
        return 2
    tree = Tree(root=root, release=release)
    if tree.guessed:
        print(f"kmodd lookup: kernel {tree.release}, the only one below {root}", file=sys.stderr)
    try:
        tree.check()
    except NoTree as error:
        print(f"kmodd lookup: {error}", file=sys.stderr)
        return 3
    aliases = [os.fsencode(word) for word in options.operands]
    snapshot = tree.quick_snapshot(like_kmod=bool(aliases) and len(aliases) <= _FEW)
    try:
        all_matched = _look_up([aliases] if aliases else _lines_of_stdin(), snapshot)
    except OSError as error:
        print(f"kmodd lookup: Failed to read standard input: {error.strerror}", file=sys.stderr)
        all_matched = False
    for problem in snapshot.problems:
        print(f"kmodd lookup: {problem.with_caret()}", file=sys.stderr)
    if all_matched:
        return 0
    return 3 if snapshot.catalog.is_damaged else 1


def _look_up(batches: Iterator[list[bytes]] | list[list[bytes]], snapshot: Snapshot) -> bool:
    """Print a line per alias, flushed after each batch; return whether all aliases matched."""
    all_matched = True
    number = 0
    for batch in batches:
        lines = []
        for alias in batch:
            number += 1
            if len(alias) > LIMIT or b"\0" in alias:
                what = "contains a NUL byte" if b"\0" in alias[:LIMIT] else f"is longer than {LIMIT:,} bytes"
                print(f"kmodd lookup: line {number} {what}", file=sys.stderr)
                all_matched = False
                continue
            modules = dict.fromkeys(hit.module for hit in lookup_or_nothing(decode(alias), snapshot))
            all_matched = all_matched and bool(modules)
            lines.append(alias + b"\t" + os.fsencode(" ".join(modules)) + b"\n")
        sys.stdout.buffer.write(b"".join(lines))
        sys.stdout.buffer.flush()
        if output_is_lost():
            break
    return all_matched


def _lines_of_stdin() -> Iterator[list[bytes]]:
    """Yield complete lines as they arrive. Of an overlong line only LIMIT + 1 bytes are kept."""
    rest = b""
    while data := os.read(0, 65536):
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > LIMIT:
            rest = rest[: LIMIT + 1]
        yield lines
    if rest:
        yield [rest]
