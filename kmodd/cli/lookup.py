"""`kmodd lookup`: print the modules that match each alias, as `modprobe -R` does, without duplicates."""

from __future__ import annotations

import os
import sys

from kmodd.cli.daemon_tree import tree_for
from kmodd.cli.streams import output_is_lost
from kmodd.cli.verb import KERNEL, ROOT, Verb
from kmodd.errors import NoTree
from kmodd.index.catalog import Snapshot, lookup_or_nothing
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 4096
"""Maximum bytes of an alias."""
_FEW = 8
"""Up to so many aliases are looked up in the .bin files; for more, building a trie from the text files pays."""

VERB = Verb(
    "lookup",
    "Print for each alias, module or modalias a line: the alias, a TAB, and the matching modules, best first. Without "
    "ALIAS, read aliases from standard input, one a line. Blacklists are ignored.",
    (ROOT, KERNEL),
    "[ALIAS…]",
    (
        (0, "all aliases matched"),
        (1, "one did not"),
        (3, "no module tree, or a damaged index"),
    ),
    (
        ("lookup fs-ext4 net-pf-10", "Which modules are these?"),
        ("lookup < aliases", "Look up the lines of a file, or what another program writes to a pipe."),
    ),
)


def main(argv: list[str]) -> int:
    """Look up the arguments, or the lines of standard input; return the exit status in its help."""
    given = VERB.parse(argv)
    if isinstance(given, int):
        return given
    root = given.get("root")
    tree = tree_for(root, given.get("kernel") or None)
    if tree.guessed:
        VERB.complain(f"kernel {tree.release}, the only one below {root}")
    try:
        tree.check()
    except NoTree as error:
        VERB.complain(f"{error}")
        return 3
    aliases = [os.fsencode(word) for word in given.operands]
    snapshot = tree.quick_snapshot(like_kmod=bool(aliases) and len(aliases) <= _FEW)
    try:
        all_matched = _look_up([aliases] if aliases else _lines_of_stdin(), snapshot)
    except OSError as error:
        VERB.complain(f"Failed to read standard input: {error.strerror}")
        all_matched = False
    for problem in snapshot.problems:
        VERB.complain(f"{problem.with_caret()}")
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
                VERB.complain(f"line {number} {what}")
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
