"""Draws a boot from a seed: a machine, its faults, and lines that fit its state when they are played."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from tests.simulation.coverage import Coverage
from tests.simulation.faults import FAULTS, Words, words_of
from tests.simulation.invariants import Violation
from tests.simulation.rest import rest
from tests.simulation.simulation import Simulation

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.txt"))
"""Shrunk scripts of failures that the search has found, or that one rule is for."""

MIN_MODULES, MAX_MODULES = 20, 26
MIN_DEVICES, MAX_DEVICES = 12, 18
MIN_EVENTS = 200
"""Events that the engine handles before the machine comes to rest, at least."""
MIN_FAULTS, MAX_FAULTS = 3, 6


@dataclass
class Boot:
    """A boot that was played: its lines, and what it violated."""

    lines: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    violation: Violation | None = None
    error: Exception | None = None
    """An exception that is no violation."""
    events: int = 0
    """Events before rest."""

    @property
    def kind(self) -> str:
        """What went wrong, in a word or two; empty: nothing."""
        if self.error:
            return f"{type(self.error).__name__}"
        return self.violation.kind if self.violation else ""

    @property
    def text(self) -> str:
        """What went wrong."""
        return str(self.violation or self.error or "")


def draw_machine(rng: random.Random) -> list[str]:
    """The lines that make a machine, the last of which starts the daemon."""
    names = [f"{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"[: rng.randint(MIN_MODULES, MAX_MODULES)]]
    lines = [f"kernel {rng.choice(('6.1', '6.12'))}"]
    for number, name in enumerate(names):
        count = rng.choice((0, 0, 0, 1, 1, 2))
        needs = sorted(rng.sample(names[:number], min(count, number)))
        lines.append(" ".join(["module", name, *needs]))
    texts = [f"pci:v{number:02}" for number in range(MIN_DEVICES)]
    for text in texts:
        lines += [f"alias {text}* {name}" for name in rng.sample(names, rng.choice((1, 1, 1, 2)))]
    lines += [f"alias net-pf-{number}* {rng.choice(names)}" for number in (3, 4)]
    for _ in range(rng.randint(0, 5)):
        one, other = rng.sample(names, 2)
        lines.append(f"config softdep {one} {rng.choice(('pre', 'post'))}: {other}")
    for _ in range(rng.choice((0, 0, 1, 2))):
        verb, what = rng.choice((("install", "/bin/load"), ("install", "/bin/true"), ("remove", "/bin/load")))
        lines.append(f"config {verb} {rng.choice(names)} {what}")
    lines.append(f"set Lanes {rng.choice((1, 1, 2, 3, 'auto', 'auto'))}")
    lines += [f"init {name} {word}" for name in names if (word := rng.choice(("", "", "sleeps", "sleeps", "turns")))]
    lines.append(f"set StuckAfterSec {rng.choice((5, 20, 60))}")
    lines.append(f"set ReconcileSec {rng.choice((30, 600))}")
    lines += [f"boot {name}" for name in rng.sample(names, rng.choice((0, 0, 1, 3, 5)))]
    for name in rng.sample(names, rng.choice((0, 0, 2))):
        lines.append(f"live {name}")
    for number in range(rng.randint(MIN_DEVICES, MAX_DEVICES)):
        lines.append(f"plug d{number} {texts[number % len(texts)] if rng.random() < 0.7 else rng.choice(texts)}")
    return [*lines, "start", "round"]


class Drawer:
    """Draws lines that make sense on a machine now."""

    def __init__(self, sim: Simulation, rng: random.Random, faults: list[str]) -> None:
        self._sim = sim
        self._rng = rng
        self._kinds: list[tuple[float, Callable[[Words], str]]] = [*_USUAL]
        for fault in faults:
            self._kinds += FAULTS[fault]
        self._weights = list(accumulate(weight for weight, _ in self._kinds))

    def line(self) -> str:
        """The next line."""
        while True:
            (_, make) = self._rng.choices(self._kinds, cum_weights=self._weights)[0]
            if line := make(words_of(self._sim, self._rng)):
                return line


def _plug(words: Words) -> str:
    return f"plug {words.new_device()} {words.alias()}"


def _unplug(words: Words) -> str:
    device = words.device()
    return device and f"unplug {device}"


def _trigger(words: Words) -> str:
    device = words.device()
    return device and f"trigger {device}"


def _finish(words: Words) -> str:
    module = words.loading()
    return module and f"finish {module}"


def _begin(words: Words) -> str:
    module = words.loading()
    return module and f"begin {module}"


_USUAL: list[tuple[float, Callable[[Words], str]]] = [
    (10, _plug),
    (3, _unplug),
    (3, _trigger),
    (5, lambda words: f"order {words.name()}"),
    (3, lambda words: f"remove {words.module()}{words.rng.choice(('', '', ' holders', ' first', ' all', ' ignore'))}"),
    (5, lambda words: f"ask {words.name()} {words.rng.choice((0, 1000, 1001))}"),
    (30, _finish),
    (5, _begin),
    (30, lambda words: "round"),
    (5, lambda words: f"wait {words.rng.choice((0.01, 0.6, 1.1, 3.1, 12))}"),
    (4, lambda words: "tick"),
    (20, lambda words: "wait 0.004" if words.sim.files.settings.get("Lanes") == "auto" else ""),
]
"""What happens on each machine."""


def play_boot(seed: int, coverage: Coverage | None = None) -> tuple[Boot, Simulation]:
    """Draw and play a boot, until it rests or an invariant does not hold."""
    rng = random.Random(seed)
    sim, boot = Simulation(coverage), Boot()
    try:
        _draw(sim, boot, rng)
        boot.events = sim.invariants.events
        rest(sim)
    except Violation as violation:
        boot.violation = violation
    except Exception as error:
        boot.error = error
    if coverage:
        coverage.add_boot(boot.faults)
        coverage.events += sim.invariants.events
    return boot, sim


def read_script(path: Path) -> list[str]:
    """The lines of a script but comments."""
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def _draw(sim: Simulation, boot: Boot, rng: random.Random) -> None:
    boot.faults = rng.sample(sorted(FAULTS), rng.randint(MIN_FAULTS, MAX_FAULTS))
    for line in draw_machine(rng):
        boot.lines.append(line)
        sim.do(line)
    drawer = Drawer(sim, rng, boot.faults)
    count = rng.randint(60, 160)
    while count > 0 or sim.invariants.events < MIN_EVENTS:
        count -= 1
        line = drawer.line()
        boot.lines.append(line)
        sim.do(line)
        if rng.random() < 0.6:
            boot.lines.append("round")
            sim.do("round")


def play_lines(lines: list[str], coverage: Coverage | None = None) -> tuple[Boot, Simulation]:
    """Play lines, then come to rest."""
    sim, boot = Simulation(coverage), Boot(list(lines))
    try:
        sim.play(lines)
        rest(sim)
    except Violation as violation:
        boot.violation = violation
    except Exception as error:
        boot.error = error
    return boot, sim
