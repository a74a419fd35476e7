"""Shrinks a script that violates an invariant: leaves out lines as long as the same kind of violation remains."""

from __future__ import annotations

from collections.abc import Callable


def shrink(lines: list[str], fails: Callable[[list[str]], bool], tries: int = 3000) -> list[str]:
    """Return a part of `lines` that fails, too, and from which no line can be left out, as far as `tries` reach.

    fails: whether the same happens with these lines.
    """
    size = max(1, len(lines) // 2)
    while tries > 0:
        at, smaller = 0, False
        while at < len(lines) and tries > 0:
            tries -= 1
            trial = lines[:at] + lines[at + size :]
            if fails(trial):
                lines, smaller = trial, True
            else:
                at += size
        if size == 1 and not smaller:
            break
        size = max(1, size // 2) if not smaller or size > 1 else 1
    return lines
