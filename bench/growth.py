"""Benchmark of growth: look-ups in 1, 4 and 16 times the aliases, the device queue with 100 to 1,000,000 events.

    python3 -m bench.growth [--tree DIR] [--rounds N]

Prints figures and exponents, and draws `growth.svg`. Each point is the CPU time of a process of its own, the median of
the rounds. With an exponent of 0 the cost does not depend on the number, with 1 it is proportional to the number.

Look-up: the patterns of the full tree, and copies of them for other vendors. All sizes look up the same names, derived
from 4,000 random patterns of the tree. The peer is libkmod with an index of the same patterns.

Device queue: datagrams of 590 devices in turn are parsed, converted to requests, and queued, where requests of one name
are merged; at the end, the queue is emptied. The cost is that of one event.
"""

from __future__ import annotations

import argparse
import math
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import lookup, plot

SIZES = (1, 4, 16)
EVENTS = (100, 10_000, 1_000_000)
DEVICES = 590
NAMES = 4000
PICTURE = Path(__file__).parent / "growth.svg"


@dataclass(frozen=True, slots=True)
class Curve:
    """The cost of an operation in µs, by the size of its input."""

    what: str
    unit: str
    """Unit of `many`."""
    many: tuple[int, ...]
    cost: tuple[float, ...]
    exponent: float


def main() -> None:
    """Measure, print and draw, or with --point measure a single point."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tree", type=Path, help="a folder with modules.alias and kmod's .bin files; else Debian's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--point", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        what, first, second = options.point
        print(backlog_point(int(first)) if what == "backlog" else lookup_point(Path(first), Path(second)))
        return
    print(text_of(measure(options.tree or lookup.debian_tree(), options.rounds)))


def measure(tree: Path, rounds: int) -> list[Curve]:
    """Return all curves, and draw them."""
    with tempfile.TemporaryDirectory() as folder:
        curves = [*look_ups(tree, Path(folder), rounds), backlog(rounds)]
    PICTURE.write_text(
        plot.picture(
            [
                plot.Panel("One look-up", "alias patterns", "µs", [_line(curve) for curve in curves[:2]]),
                plot.Panel("One event in the device queue", "events", "µs", [_line(curves[2])]),
            ]
        )
    )
    return curves


def text_of(curves: list[Curve]) -> str:
    """Return a line per curve."""
    lines = []
    for curve in curves:
        points = ", ".join(f"{cost:.2f} µs at {many:,}" for many, cost in zip(curve.many, curve.cost, strict=True))
        lines.append(f"{curve.what:<34}exponent {curve.exponent:5.2f}: {points} {curve.unit}")
    return "\n".join(lines)


def exponent(many: tuple[int, ...], cost: tuple[float, ...]) -> float:
    """Return the slope of the logarithms, by least squares."""
    xs, ys = [math.log(x) for x in many], [math.log(y) for y in cost]
    middle_x, middle_y = statistics.mean(xs), statistics.mean(ys)
    rise = sum((x - middle_x) * (y - middle_y) for x, y in zip(xs, ys, strict=True))
    return rise / sum((x - middle_x) ** 2 for x in xs)


def _curve(what: str, unit: str, many: tuple[int, ...], rounds: int, point: Callable[[int], float]) -> Curve:
    cost = tuple(statistics.median(point(place) for _ in range(rounds)) for place in range(len(many)))
    return Curve(what, unit, many, cost, exponent(many, cost))


def _line(curve: Curve) -> plot.Line:
    points = list(zip(curve.many, curve.cost, strict=True))
    return plot.Line(f"{curve.what}: exponent {curve.exponent:.2f}", points)


def _child(what: str, *words: object) -> float:
    command = [sys.executable, "-m", "bench.growth", "--point", what, *map(str, words)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=lookup.ROOT)
    return float(done.stdout)


# ── look-up ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def look_ups(tree: Path, work: Path, rounds: int) -> list[Curve]:
    """Return the curves of kmodd and of libkmod."""
    from kmodd.errors import UnmatchedBracket
    from kmodd.index.bin_reader import build
    from kmodd.names import underscores

    rng = random.Random(7)
    lines = [line.split() for line in (tree / "modules.alias").read_text().splitlines() if line.startswith("alias ")]
    names = [lookup.concrete(pattern, rng) for _, pattern, _ in rng.sample(lines, NAMES)]
    (work / "names").write_text("".join(f"{underscores(name)}\n" for name in names if not set("[]") & set(name)))
    folders = []
    for size in SIZES:
        entries = [(renamed(pattern, copy), module) for copy in range(size) for _, pattern, module in lines]
        folder = work / str(size)
        folder.mkdir()
        for index in tree.glob("modules.*.bin"):
            shutil.copy(index, folder)
        (folder / "modules.alias").write_text("".join(f"alias {pattern} {module}\n" for pattern, module in entries))
        keys = []
        for number, (pattern, module) in enumerate(entries):
            try:
                keys.append((underscores(pattern), module.replace("-", "_"), number))
            except UnmatchedBracket:
                continue
        (folder / "modules.alias.bin").write_bytes(build(keys, preorder=False))
        folders.append(folder)
    peer = lookup.compiled_peer(work)
    many = tuple(len(lines) * size for size in SIZES)
    wanted = work / "names"
    return [
        _curve("kmodd", "patterns", many, rounds, lambda place: _child("lookup", folders[place], wanted)),
        _curve("libkmod", "patterns", many, rounds, lambda place: lookup.peer_costs(peer, folders[place], wanted)[1]),
    ]


def renamed(pattern: str, copy: int) -> str:
    """Return the pattern for a similar device of another vendor: with another ID or name, or a mark after the bus."""
    if not copy:
        return pattern
    numbered = re.sub(
        r"(?<=:v)[0-9A-F]{4,8}",
        lambda match: f"{(int(match[0], 16) + 0x0777 * copy) % 16 ** len(match[0]):0{len(match[0])}X}", pattern,
    )  # fmt: skip
    if numbered != pattern:
        return numbered
    if ":N*T*C" in pattern:
        return pattern.replace(":N*T*C", f":N*T*Cv{copy}")
    bus, colon, rest = pattern.partition(":")
    return f"{bus}:v{copy}{rest}" if colon else f"{pattern}v{copy}"


def lookup_point(tree: Path, names: Path) -> float:
    """Return the µs of a look-up in the patterns of `tree`, of the names in a file, after looking up each name once."""
    from kmodd.index.alias_trie import AliasTrie

    index = AliasTrie.from_text((tree / "modules.alias").read_text(), "modules.alias")
    wanted = names.read_text().splitlines()
    for name in wanted:
        index.matches(name)
    start = time.process_time()
    for name in wanted:
        index.matches(name)
    return (time.process_time() - start) * 1e6 / len(wanted)


# ── queue ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def backlog(rounds: int) -> Curve:
    """Return the curve of the device queue."""
    return _curve("kmodd", "events", EVENTS, rounds, lambda place: _child("backlog", EVENTS[place], "-"))


def backlog_point(count: int) -> float:
    """Return the µs of CPU time per event, for `count` events."""
    from kmodd.kernel import uevent
    from kmodd.planning.device_requests import wanted
    from kmodd.state.queue import DeviceQueue

    datagrams = []
    for number in range(DEVICES):
        path = f"/devices/pci0000:00/0000:{number:02x}:00.0"
        text = f"add@{path}\0ACTION=add\0DEVPATH={path}\0SUBSYSTEM=pci\0PCI_CLASS=20000\0SYNTH_UUID=0\0"
        text += f"MODALIAS=pci:v{number:08X}d000010D3sv00001AF4sd00000000bc02sc00i00\0SEQNUM={number}\0"
        datagrams.append(text.encode())
    queue = DeviceQueue()
    taken = 0
    start = time.process_time()
    for number in range(count):
        for request in wanted(uevent.parse(datagrams[number % DEVICES]), "uevent"):
            queue.add(request)
    while queue.take():
        taken += 1
    cost = (time.process_time() - start) * 1e6 / count
    assert taken == min(count, DEVICES)
    return cost


if __name__ == "__main__":
    main()
