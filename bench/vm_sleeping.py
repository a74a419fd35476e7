"""Benchmark of coldplug on a machine whose drivers sleep in their probes, and of the memory that lanes take.

Its drivers and their times are those of tests/vm/sleeping.py; it has no other devices than the emulator's own.
"""

from __future__ import annotations

import statistics
from typing import Final

from bench.rows import Row, row
from bench.vm_coldplug import LANES_AUTO, Coldplug, once, same_modules, times
from bench.vm_guest import Loader, guest, sizes, stop_witness
from tests.vm import VmError, say
from tests.vm.image import Image

_LOOKS: Final = 20

_WAYS: Final = {"": "", ", Lanes=auto": LANES_AUTO}
"""What a row says → lines of section [Kmodd]."""


def measure(image: Image, rounds: int, cpus: int) -> list[Row]:
    """Measure it with one lane and with `auto`, without udevd and beside it; the peer is udevd alone."""
    peers: list[Coldplug] = []
    alone: dict[str, list[Coldplug]] = {way: [] for way in _WAYS}
    beside: list[Coldplug] = []
    for _ in range(rounds):
        peers.append(_once(image, "udevd", cpus))
        for way, ours in alone.items():
            ours.append(_once(image, "kmodd", cpus, _WAYS[way]))
        beside.append(_once(image, "kmodd", cpus, LANES_AUTO, beside=True))
    same_modules([*(one for ours in alone.values() for one in ours), *beside], peers)
    rows = []
    for way, ours in {**alone, ", udevd beside kmodd, Lanes=auto": beside}.items():
        rows += times(f"drivers that sleep, {cpus} processors{way}", ours, peers)
    return rows


def _once(image: Image, loader: Loader, cpus: int, conf: str = "", *, beside: bool = False) -> Coldplug:
    return once(image, loader, conf=conf, cpus=cpus, beside=beside, devices=(), sleeping=True)


def measure_memory(image: Image, rounds: int) -> list[Row]:
    """Measure what a loader takes while all lanes are there: the median of those that the spawner has forked."""
    found = [_loaders(image) for _ in range(rounds)]
    medians = [(statistics.median(loaders), 0.0) for loaders in found]
    return [row(f"memory of a lane's loader, {min(map(len, found))} of them", medians, "MB; PSS")]


def _loaders(image: Image) -> list[float]:
    """Return the PSS of each loader, in MB, at the look that saw most of them."""
    with guest(image, "memory of lanes", conf=LANES_AUTO, devices=(), traced=False, sleeping=True) as machine:
        stop_witness(machine)
        machine.check("systemctl start --no-block kmodd.service")
        looks = [sizes(machine, "kmodd", "kmodd-loader@*") for _ in range(_LOOKS)]
    most = max(looks, key=len)
    say(f"spawner and loaders: {', '.join(f'{size:.2f}' for size in most.values())} MB")
    loaders = [size for pid, size in most.items() if pid != min(most)]
    if not loaders:
        raise VmError("no loader was seen")
    return loaders
