"""What a search has seen: transitions of the batch's and the start-up's tables, and pairs of faults in one boot."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

BATCH_TABLE = frozenset(
    {
        ("running", "reply", "running"),
        ("running", "end", "done"),
        ("running", "not begun", "done"),
        ("running", "overdue", "stuck"),
        ("running", "overdue, live", "stalled"),
        ("stuck", "reply", "detached"),
        ("stalled", "reply", "detached"),
        ("stuck", "end", "done"),
        ("stuck", "not begun", "done"),
        ("stalled", "end", "done"),
        ("stalled", "not begun", "done"),
        ("detached", "reply", "detached"),
        ("detached", "end", "done"),
        ("detached", "not begun", "done"),
    }
)
"""The table of kmodd.engine.batch.Batch: state, event, next state. A reply is to a step that is not the last one."""

STARTUP_TABLE = frozenset({("boot_list", "late_opens"), ("late_opens", "running")})
"""The table of kmodd.daemon.startup.Startup, without the row that keeps its phase."""


@dataclass
class Coverage:
    """Counters that add up."""

    boots: int = 0
    events: int = 0
    loads: int = 0
    further_lanes: int = 0
    """Batches that went to a further lane of `Lanes=auto`."""
    batch: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    startup: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    pairs: Counter[str] = field(default_factory=Counter)

    def add_boot(self, faults: list[str]) -> None:
        """A boot with these faults has ended."""
        self.boots += 1
        self.faults.update(faults)
        self.pairs.update(f"{one} + {other}" for one, other in combinations(sorted(set(faults)), 2))

    def add(self, other: Coverage) -> None:
        """Add what another search has seen."""
        self.boots += other.boots
        self.events += other.events
        self.loads += other.loads
        self.further_lanes += other.further_lanes
        for name in ("batch", "startup", "faults", "pairs"):
            getattr(self, name).update(getattr(other, name))

    def to_json(self) -> dict[str, object]:
        """As plain values."""
        return {
            "boots": self.boots,
            "events": self.events,
            "loads": self.loads,
            "further_lanes": self.further_lanes,
            "batch": {" | ".join(key): count for key, count in sorted(self.batch.items())},
            "startup": {" | ".join(key): count for key, count in sorted(self.startup.items())},
            "faults": dict(sorted(self.faults.items())),
            "pairs": dict(sorted(self.pairs.items())),
        }

    def summary(self, fault_kinds: int) -> str:
        """One line. `fault_kinds`: number of kinds of faults."""
        pairs = fault_kinds * (fault_kinds - 1) // 2
        return (
            f"{self.boots} boots, {self.events} events, {self.loads} loads, {self.further_lanes} further lanes; "
            f"batch table {len(BATCH_TABLE & set(self.batch))} of {len(BATCH_TABLE)}, "
            f"start-up table {len(STARTUP_TABLE & set(self.startup))} of {len(STARTUP_TABLE)}, "
            f"pairs of faults {len(self.pairs)} of {pairs}"
        )


def of_json(words: dict[str, dict[str, int]], totals: dict[str, int]) -> Coverage:
    """The counters of `Coverage.to_json`. `totals`: its numbers."""
    return Coverage(
        totals["boots"],
        totals["events"],
        totals["loads"],
        totals.get("further_lanes", 0),
        Counter({(a, b, c): count for key, count in words["batch"].items() for a, b, c in [key.split(" | ")]}),
        Counter({(a, b): count for key, count in words["startup"].items() for a, b in [key.split(" | ")]}),
        Counter(words["faults"]),
        Counter(words["pairs"]),
    )


@dataclass
class Results:
    """A file in which the results of ranges of seeds add up, apart for each state of the sources."""

    path: Path
    commit: str = ""
    """Of the last range."""
    sources: str = ""
    """Hash of the sources that a boot follows from (`compiled.state`): another one makes other boots."""
    ranges: list[tuple[int, int]] = field(default_factory=list)
    """First and last seed of each range."""
    failed: list[tuple[int, str]] = field(default_factory=list)
    """Seed and kind of violation."""
    seconds: float = 0.0
    """Processor seconds."""
    coverage: Coverage = field(default_factory=Coverage)
    others: list[dict[str, Any]] = field(default_factory=list)
    """The same of earlier states of the sources, as the file has it."""

    def read(self) -> None:
        """Read the file, if there is one."""
        if self.path.exists():
            for words in json.loads(self.path.read_text())["states"]:
                if words["sources"] != self.sources:
                    self.others.append(words)
                    continue
                self.ranges = [(first, last) for first, last in words["ranges"]]
                self.failed = [(seed, kind) for seed, kind in words["failed"]]
                self.seconds = words["seconds"]
                self.coverage = of_json(words["coverage"], words["coverage"])

    def has(self, first: int, last: int) -> bool:
        """Whether a seed of the range was counted before, in any state of the sources."""
        ranges = [*self.ranges, *((begin, end) for words in self.others for begin, end in words["ranges"])]
        return any(first <= other_last and other_first <= last for other_first, other_last in ranges)

    def write(self) -> None:
        """Replace the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        words = {
            "commit": self.commit,
            "sources": self.sources,
            "ranges": merged(self.ranges),
            "failed": sorted(self.failed),
            "seconds": round(self.seconds, 1),
            "coverage": self.coverage.to_json(),
        }
        beside = self.path.with_suffix(".new")
        beside.write_text(json.dumps({"states": [*self.others, words]}, indent=1) + "\n")
        beside.rename(self.path)

    def total(self) -> str:
        """One line about all states of the sources together."""
        boots = self.coverage.boots + sum(words["coverage"]["boots"] for words in self.others)
        failed = len(self.failed) + sum(len(words["failed"]) for words in self.others)
        return f"{boots} boots on {len(self.others) + 1} states of the sources, {failed} failed"


def merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges in order, with those joined that touch."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found
