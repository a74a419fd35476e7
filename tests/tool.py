"""Run one of kmodd's tools in this process, and compare its output with kmod's."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.rootfs import Said

Main = Callable[[list[str]], int]


def ours(main: Main, argv: Sequence[str]) -> Said:
    """Run a tool's `main`; return its output and status."""
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
    """Describe the difference in one line; empty without one."""
    for name in ("status", "err", "out"):
        theirs, mine = getattr(peers, name), getattr(own, name)
        if theirs != mine:
            if name == "status":
                return f"status: kmod {theirs}, kmodd {mine}"
            same = next((at for at, (a, b) in enumerate(zip(theirs, mine, strict=False)) if a != b), 0)
            at = max(same - 60, 0)
            return f"{name} from byte {at}: kmod {theirs[at:]!r:.400}, kmodd {mine[at:]!r:.400}"
    return ""


def contents(folder: Path) -> dict[str, bytes]:
    """The index files in a module directory."""
    return {path.name: path.read_bytes() for path in folder.glob("modules.*")}
