"""Running one of our tools in this process, and comparing what it says with what kmod's says."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.rootfs import Said

Main = Callable[[list[str]], int]


def ours(main: Main, argv: Sequence[str]) -> Said:
    """What a tool's `main` prints, and its status."""
    out, err = io.BytesIO(), io.BytesIO()
    kept = sys.stdout, sys.stderr
    sys.stdout = io.TextIOWrapper(out, write_through=True, errors="surrogateescape")
    sys.stderr = io.TextIOWrapper(err, write_through=True, errors="surrogateescape")
    try:
        status = main(list(argv))
        sys.stdout.flush()
        return Said(out.getvalue(), err.getvalue(), status)
    finally:
        sys.stdout, sys.stderr = kept


def difference(peers: Said, own: Said) -> str:
    """What differs, in one line; empty where nothing does."""
    for name in ("status", "err", "out"):
        theirs, mine = getattr(peers, name), getattr(own, name)
        if theirs != mine:
            at = 0
            if isinstance(theirs, bytes):
                at = max(len(os.path.commonprefix([theirs, mine])) - 60, 0)
                theirs, mine = theirs[at:], mine[at:]
            return f"{name} from byte {at}: kmod {theirs!r:.400}, kmodd {mine!r:.400}"
    return ""


def contents(folder: Path) -> dict[str, bytes]:
    """The index files in a module directory."""
    return {path.name: path.read_bytes() for path in folder.glob("modules.*")}
