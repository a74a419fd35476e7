"""Runs the engine on simulated machines of any size, and counts its steps: lines of `kmodd/` that are executed.

A workload has one number that grows; all else is fixed. Loaders answer at once. No invariants are checked.
"""

from __future__ import annotations

import errno
import gc
import math
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from kmodd.engine.events import Command, Event
from kmodd.planning.record import Record
from kmodd.planning.request import Request
from tests.simulation.daemon import Run, SimDaemon
from tests.simulation.files import Files, SimMachine
from tests.simulation.kernel import Kernel
from tests.simulation.loaders import Loaders

KMODD = str(Path(__file__).parent.parent.parent / "kmodd")
DATAGRAMS = 64
"""Uevents that the daemon finds in its socket at a time."""

FAMILIES = 8
"""Modules that each processor wants; the last one refuses."""


class Unseen:
    """An observer that only counts loads and records."""

    def __init__(self) -> None:
        self.records = 0

    def before(self, event: Event) -> None:
        """Nothing is checked."""

    def after(self, event: Event, commands: list[Command]) -> None:
        """Nothing is checked."""

    def answered(self, request: Request) -> None:
        """Nothing is checked."""

    def logged(self, record: Record) -> None:
        """A record was written."""
        self.records += 1

    def moved(self, before: str, after: str) -> None:
        """Nothing is checked."""

    def stuck_in_circle(self) -> None:
        """The engine does not come to rest. Raises RuntimeError."""
        raise RuntimeError("the loop does not come to rest")


class Large:
    """A machine of any size, with the daemon on it."""

    def __init__(self, *, modules: int = 50, devices: int = 500, processors: int = 0, lanes: int = 1) -> None:
        """Each module needs the one before it of the same ten; devices want all modules in turn."""
        self.now = 1000.0
        self.kernel, self.files, self.observer = Kernel(), Files(), Unseen()
        for number in range(modules):
            needs = (f"m{number - 1}",) if number % 10 else ()
            self._add_module(f"m{number}", needs, f"pci:v{number:05}*")
        for number in range(FAMILIES if processors else 0):
            self._add_module(f"cpu{number}", (), "cpu:type:x86*")
        self.kernel.change_init(f"cpu{FAMILIES - 1}", errno=errno.ENODEV)
        self.files.settings["Lanes"] = str(lanes)
        self.kernel.devices.update((f"d{each}", f"pci:v{each % modules:05}d{each}") for each in range(devices))
        self.kernel.devices.update((f"cpu{each}", "cpu:type:x86,ven0000") for each in range(processors))
        machine = SimMachine(self.files, self.kernel)
        self.loaders = Loaders(self.kernel, self.files)
        self.daemon = SimDaemon(machine, self.loaders, Run(), self.observer)

    def _add_module(self, name: str, needs: tuple[str, ...], pattern: str) -> None:
        self.files.needs[name] = self.kernel.needs[name] = needs
        self.files.aliases.append((pattern, name))

    def boot(self) -> None:
        """Start the daemon and coldplug all devices."""
        self.daemon.start(self.now)
        self.rest()

    def storm(self, count: int) -> None:
        """Have the kernel send `count` uevents of its devices, each one in turn, with every action."""
        names = list(self.kernel.devices.items())
        for first in range(0, count, DATAGRAMS):
            for number in range(first, min(first + DATAGRAMS, count)):
                name, alias = names[number % len(names)]
                action = ("add", "change", "bind", "unbind")[number // len(names) % 4]
                self.daemon.socket.append(f"{action}@/devices/{name}\0SUBSYSTEM=pci\0MODALIAS={alias}\0")
            self.daemon.round(self.now)
            self.now += 0.001
            self.kernel.uevents.clear()
        self.rest()

    def rest(self) -> None:
        """Have all loads end until the engine is idle."""
        while True:
            self.daemon.socket, self.kernel.uevents = [*self.daemon.socket, *self.kernel.uevents], []
            self.daemon.round(self.now)
            busy = self.loaders.busy()
            for loader in busy:
                self.loaders.finish(loader, self.now)
            unread = any(loader.outbox for loader in self.loaders.all)
            if not (busy or unread or self.kernel.uevents or self.daemon.socket):
                if self.daemon.engine.is_idle:
                    return
                self.now = max(self.now, self.daemon.deadline() or self.now) + 0.001


def booted(*, devices: int) -> Large:
    """A machine after coldplug."""
    large = Large(devices=devices)
    large.boot()
    return large


@dataclass(frozen=True)
class Workload:
    """What grows, and in which sizes it is measured."""

    name: str
    sizes: tuple[int, ...]
    make: Callable[[int], Large]
    play: Callable[[Large, int], None] = lambda large, _: large.boot()
    small: int = 0
    """A size for the test; it is compared with twice that."""


WORKLOADS = (
    Workload("devices", (1_250, 2_500, 5_000, 10_000), lambda size: Large(devices=size), small=300),
    Workload("processors", (192, 384, 768, 1_536), lambda size: Large(devices=0, processors=size), small=100),
    Workload("modules", (62, 125, 250, 500), lambda size: Large(modules=size, devices=1_000), small=40),
    Workload("lanes", (8, 16, 32, 64), lambda size: Large(modules=500, devices=1_000, lanes=size), small=4),
    Workload(
        "events",
        (1_000, 10_000, 100_000, 1_000_000),
        lambda _: booted(devices=500),
        lambda large, size: large.storm(size),
        small=1_000,
    ),
)


@dataclass
class Steps:
    """A counter of the lines of kmodd that are executed."""

    count: int = 0

    def __enter__(self) -> Steps:
        def line(_frame: FrameType, event: str, _argument: Any) -> Any:
            if event == "line":
                self.count += 1
            return line

        def call(frame: FrameType, _event: str, _argument: Any) -> Any:
            return line if frame.f_code.co_filename.startswith((KMODD, "<mutant")) else None

        sys.settrace(call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)


def steps(workload: Workload, size: int) -> int:
    """Lines of kmodd that a workload executes."""
    large = workload.make(size)
    with Steps() as counted:
        workload.play(large, size)
    return counted.count


def seconds(workload: Workload, size: int) -> float:
    """Processor time of a workload, the simulator included."""
    large = workload.make(size)
    begin = time.process_time()
    workload.play(large, size)
    return time.process_time() - begin


def memory(workload: Workload, size: int) -> int:
    """Bytes that are allocated in lines of kmodd when a workload is over."""
    tracemalloc.start()
    try:
        large = workload.make(size)
        workload.play(large, size)
        gc.collect()
        lines = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, f"{KMODD}/*")])
        return sum(each.size for each in lines.statistics("filename"))
    finally:
        tracemalloc.stop()


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of a straight line through the points, on logarithmic axes (least squares)."""
    xs, ys = [math.log(size) for size in sizes], [math.log(max(cost, 1e-9)) for cost in costs]
    mid_x, mid_y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mid_x) * (y - mid_y) for x, y in zip(xs, ys, strict=True)) / sum((x - mid_x) ** 2 for x in xs)
