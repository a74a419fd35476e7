"""Rows of results: medians of kmodd and the peer, and their ratio, from alternating measurements."""

from __future__ import annotations

import statistics
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """Medians of both, and the median, minimum and maximum ratio of all rounds."""

    what: str
    kmodd: float
    peer: float
    ratio: float
    low: float
    high: float
    unit: str


def row(what: str, pairs: list[tuple[float, float]], unit: str) -> Row:
    """Return the row of (kmodd, peer) pairs; a peer of 0 means none."""
    ratios = [ours / theirs for ours, theirs in pairs if theirs] or [0.0]
    return Row(
        what,
        statistics.median(ours for ours, _ in pairs),
        statistics.median(theirs for _, theirs in pairs),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        unit,
    )


def table(rows: list[Row]) -> str:
    """Return the rows as text, one per line."""
    lines = [f"{'what':<58}{'kmodd':>9}{'peer':>9}  {'kmodd / peer':<24}unit"]
    for one in rows:
        digits = 2 if one.ratio >= 0.1 else 4
        ratio = f"{one.ratio:.{digits}f} ({one.low:.{digits}f} to {one.high:.{digits}f})" if one.peer else ""
        peer = f"{one.peer:9.2f}" if one.peer else " " * 9
        lines.append(f"{one.what:<58}{one.kmodd:9.2f}{peer}  {ratio:<24}{one.unit}")
    return "\n".join(lines)
