"""Benchmark of a flood of synthetic events: time until all are handled, CPU time, memory afterwards.

Several guests, in each of which udevd and kmodd run in turn, and the writer (bench/guest/flood.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from bench import vm_guest
from bench.rows import Row, row
from bench.vm_guest import PROBES, Loader, guest
from tests.vm import say
from tests.vm.image import Image
from tests.vm.machine import Machine

EVENTS: Final = 11_800
STEPS: Final = (1_000, 10_000, 100_000, 1_000_000)


@dataclass(frozen=True, slots=True)
class Flood:
    """Results of a flood: `wall` and `cpu` in seconds, `memory` of the loader afterwards in MB."""

    events: int
    devices: int
    wall: float
    cpu: float
    memory: float


def measure(image: Image, rounds: int) -> list[Row]:
    """Measure wall time, CPU time and memory against udevd."""
    pairs: list[tuple[Flood, Flood]] = []
    for _ in range(rounds):
        with guest(image, "flood", traced=False) as machine:
            vm_guest.stop_witness(machine)
            theirs = _one(machine, "udevd")
            ours = _one(machine, "kmodd")
            pairs.append((ours, theirs))
    (devices,) = {ours.devices for ours, _ in pairs[:1]}
    what = f"flood, {EVENTS:,} events of {devices} devices"
    return [
        row(f"{what}, until quiet", [(a.wall, b.wall) for a, b in pairs], "s; peer: udevd"),
        row(f"{what}, CPU", [(a.cpu, b.cpu) for a, b in pairs], "s; peer: udevd and its workers"),
        row("flood, memory after it", [(a.memory, b.memory) for a, b in pairs], "MB; PSS, peer: udevd and its workers"),
    ]


def measure_growth(image: Image, _rounds: int) -> list[Row]:
    """Measure the memory of kmodd after 10³ to 10⁶ events."""
    sizes = {}
    with guest(image, "10⁶ events", traced=False) as machine:
        vm_guest.stop_witness(machine)
        vm_guest.start(machine, "kmodd")
        for step in STEPS:
            flooded = flood(machine, "kmodd", step)
            sizes[step] = flooded.memory
            say(f"{step:,} events: {flooded}")
    rows = [row(f"memory after {step:,} events more", [(sizes[step], 0.0)], "MB; PSS") for step in STEPS]
    growth = sizes[STEPS[-1]] - sizes[STEPS[0]]
    return [*rows, row(f"memory, growth from {STEPS[0]:,} to {STEPS[-1]:,} events", [(growth, 0.0)], "MB; PSS")]


def _one(machine: Machine, loader: Loader) -> Flood:
    vm_guest.start(machine, loader)
    found = flood(machine, loader, EVENTS)
    vm_guest.stop(machine, loader)
    say(f"flood, {loader}: {found}")
    return found


def flood(machine: Machine, loader: Loader, events: int) -> Flood:
    """Trigger at least `events` events and return the results of `loader`."""
    before = vm_guest.cpu(machine, loader)
    text = machine.check(f"/usr/bin/python3 -IS {PROBES}/flood.py {loader} {events}", 1200)
    spent = vm_guest.cpu(machine, loader).since(before)
    found = json.loads(text.splitlines()[-1])
    return Flood(found["events"], found["devices"], found["all"], spent.own, vm_guest.memory(machine, loader))
