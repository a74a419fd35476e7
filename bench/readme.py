"""Update the table of `make bench-vm` in bench/README.md, between two marks, from bench/results.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parent / "README.md"
WHOLE = "coldplug, udevd beside kmodd"
BEGIN, END = "<!-- make bench-vm writes from here -->", "<!-- to here -->"


def put(rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows of results.json to the page. Raises ValueError if a mark is missing."""
    text = README.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{README}: expected the lines {BEGIN!r} and {END!r}")
    README.write_text(f"{before}{begin}\n\n{markdown(rows)}\n\n{end}{after}")


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a table of medians and ratios with their spread; without ratio if the peer is 0, which means none.

    What a machine pays, kmodd beside udevd, is first; rows of several suites stand together.
    """
    lines = [
        "| what | suite, kernel | kmodd | peer | kmodd / peer | measured |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in sorted(rows, key=lambda one: (not one["what"].startswith(WHOLE), one["what"], one["suite"])):
        unit = one["unit"].partition(";")[0]
        peer = f"{_short(one['peer'])} {unit}" if one["peer"] else ""
        ratio = f"{one['ratio']:.2f} ({one['low']:.2f} to {one['high']:.2f})" if one["peer"] else ""
        machine = f"{one['suite']}, {one['kernel'].partition('-')[0]}"
        lines.append(
            f"| {one['what']} | {machine} | {_short(one['kmodd'])} {unit} | {peer} | {ratio} | {one['date']} |"
        )
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.2g}"
