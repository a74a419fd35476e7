"""The kinds of faults that a boot can have, each with the lines that it draws."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.simulation.kernel import OTHERS
from tests.simulation.simulation import Simulation


@dataclass
class Words:
    """Words that make sense on a machine now."""

    sim: Simulation
    rng: random.Random

    def module(self) -> str:
        """A module of the tree."""
        return self.rng.choice(list(self.sim.files.needs))

    def name(self) -> str:
        """A module, a name that the kernel asks for, or one that nothing has."""
        return self.module() if self.rng.random() < 0.8 else self.rng.choice(("net-pf-3", "net-pf-4", "net-pf-9"))

    def alias(self) -> str:
        """A modalias; few match nothing."""
        return f"pci:v{self.rng.randrange(13):02}" if self.rng.random() < 0.95 else "pci:none"

    def device(self) -> str:
        """A device that is there; empty: there is none."""
        return self.rng.choice(list(self.sim.kernel.devices)) if self.sim.kernel.devices else ""

    def new_device(self) -> str:
        """A device that may be there."""
        return f"d{self.rng.randrange(20)}"

    def firmware(self) -> str:
        """A firmware file that may be there."""
        return f"fw{self.rng.randrange(3)}"

    def loading(self) -> str:
        """A module that a loader or another process is at; empty: none."""
        found = [loader.module for loader in self.sim.loaders.busy()]
        found += [call.module for call in self.sim.kernel.calls if call.pid == OTHERS]
        return self.rng.choice(found) if found else ""

    def loaded(self) -> str:
        """A module that the kernel has; empty: none."""
        return self.rng.choice(list(self.sim.kernel.modules)) if self.sim.kernel.modules else ""

    def next_or_any(self) -> str:
        """Often the module that a loader is at, else any."""
        return (self.rng.random() < 0.7 and self.loading()) or self.module()


def words_of(sim: Simulation, rng: random.Random) -> Words:
    """The words of a machine."""
    return Words(sim, rng)


def _if(word: str, line: str) -> str:
    return line if word else ""


def _in(verb: str, words: Words, rest: str = "") -> str:
    word = words.loading()
    return _if(word, f"{verb} {word}{rest}")


def _switch(line: str, off: str, on: str) -> list[tuple[float, Callable[[Words], str]]]:
    """Turn something off, and on again twice as often."""
    return [(1.5, lambda _: f"{line} {off}"), (3, lambda _: f"{line} {on}")]


def _refuse(words: Words) -> str:
    code = words.rng.choice(("ENODEV", "EBUSY", "EINVAL", "EIO", "EINTR", "ENOMEM"))
    return f"init {words.next_or_any()} refuses {code}"


def _remove_other(words: Words) -> str:
    word = words.loaded()
    return _if(word, f"other-remove {word}")


def _blacklist(words: Words) -> str:
    return f"{words.rng.choice(('config', 'unconfig'))} blacklist {words.module()}"


def _rule(words: Words) -> str:
    origin = words.rng.choice(("", "", " origin=request", " origin=uevent"))
    return f"rule {words.rng.choice(('deny', 'deny', 'allow'))} module={words.module()},{words.module()}{origin}"


def _setting(words: Words) -> str:
    lines = (
        "Lanes 1", "Lanes 2", "Lanes 4", "Lanes auto", "StuckAfterSec 5", "StuckAfterSec 60", "ReconcileSec 30",
        "ReconcileSec 600",
        "BlacklistDependencies yes", "SoftdepsAddUp yes", "SoftdepKeepsInstall yes",
    )  # fmt: skip
    return f"set {words.rng.choice(lines)}"


def _autoclean(words: Words) -> str:
    return words.rng.choice(
        ("set Autoclean *", "set AutocleanSec 1", "set AutocleanSec 20", f"set Autoclean {words.module()}")
    )


FAULTS: dict[str, list[tuple[float, Callable[[Words], str]]]] = {
    "refuses": [(5, _refuse), (2, lambda words: f"init {words.module()} ok")],
    "oops": [(1, lambda words: f"init {words.next_or_any()} oops")],
    "hang": [(1, lambda words: f"init {words.next_or_any()} hang"), (1, lambda words: f"init {words.module()} ok")],
    "asynchronous work": [
        (1, lambda words: f"init {words.next_or_any()} async"),
        (1, lambda words: f"init {words.module()} ok"),
    ],
    "nested requests": [
        (6, lambda words: _in("ask-in", words, f" {words.name()}")),
        (2, lambda words: f"init {words.module()} asks {words.name()}"),
        (1, lambda words: f"init {words.module()} asks {words.module()} {words.module()}"),
    ],
    "new devices": [(3, lambda words: f"init {words.module()} adds {words.new_device()} {words.alias()}")],
    "loader killed": [(3, lambda words: _in("kill", words)), (3, lambda words: _in("kill", words, " ends"))],
    "spawner killed": _switch("spawner", "off", "on"),
    "loader named late": _switch("names", "late", "now"),
    "loader stopped late": _switch("stops", "late", "now"),
    "no stack": _switch("stacks", "off", "on"),
    "no trace": _switch("trace", "off", "on"),
    "full run": _switch("run", "full", "ok"),
    "journald stopped": _switch("journald", "off", "on"),
    "no memory": [
        *_switch("memory", "short", "ok"),
        (1.5, lambda words: f"memory fails {words.rng.choice((0, 1, 2, 5, 9, 20))}"),
        (6, lambda words: "start" if words.sim.daemon is None else ""),
    ],
    "daemon killed": [
        (1.5, lambda words: f"kill-daemon {words.rng.choice((0, 0, 1, 2, 3, 5, 9))}"),
        (6, lambda words: "start" if words.sim.daemon is None else ""),
    ],
    "events lost": [(1, lambda _: "lose")],
    "events late": [*_switch("hold", "on", "off"), (6, lambda words: f"deliver {words.rng.choice((1, 2, 5))}")],
    "flood": [(1, lambda words: "flood 80")],
    "other loads": [(5, lambda words: f"other-load {words.module()}")],
    "other removes": [(4, _remove_other)],
    "clock": [(2, lambda words: f"wait {words.rng.choice((61, 300, 86400))}")],
    "file missing": [
        (2, lambda words: f"no-file {words.next_or_any()}"),
        (2, lambda words: f"file {words.module()}"),
    ],
    "index": [(2, lambda words: f"unindex {words.module()}"), (3, lambda words: f"index {words.module()}")],
    "firmware": [
        (3, lambda words: _if(device := words.device(), f"probe {device} {words.firmware()}")),
        (3, lambda words: f"firmware {words.firmware()}"),
        (1, lambda words: f"no-firmware {words.firmware()}"),
    ],
    "tree hidden": [(1, lambda _: "hide"), (4, lambda _: "unhide")],
    "blacklist": [(3, _blacklist), (2, lambda _: "tell reload")],
    "policy": [
        (2, _rule),
        (1, lambda _: "no-rules"),
        (2, lambda words: f"set Policy {words.rng.choice(('enforce', 'enforce', 'observe', 'off'))}"),
        (2, lambda _: "tell reload"),
    ],
    "seal": [(1, lambda _: "tell seal"), (2, lambda _: "tell unseal")],
    "settings": [(3, _setting), (2, lambda _: "tell reload")],
    "autoclean": [(2, _autoclean), (2, lambda _: "tell reload")],
    "override": [(3, lambda words: f"override {words.new_device()}")],
}
"""Kind → the lines that it adds, each with its weight."""
