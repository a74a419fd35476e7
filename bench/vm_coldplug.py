"""Benchmark of coldplug, kmodd against udevd with its trigger and settle. Each measurement is a boot of its own.

On a booted machine with only the modules of initrd and PID 1, and with neither program in the page cache, one of both
is started. The page cache is not dropped, because in some boots the emulator is half as fast in memory that has held
code before. Clock: tracefs, from exec (or READY) of the daemon to the last finit_module that succeeded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import growth, plot, vm_guest, vm_trace
from bench.rows import Row, row
from bench.vm_guest import DEVICES_30, KMODD, UDEV_RULE, UDEVD, Cpu, Loader, guest
from tests.vm import VmError, say
from tests.vm.image import Image

LANES_2: Final = "Lanes=2"
LANES_AUTO: Final = "Lanes=auto"
PICTURE: Final = Path(__file__).parent / "growth_vm.svg"
_MAX_WARNINGS: Final = 5


@dataclass(frozen=True, slots=True)
class Coldplug:
    """Results of one start of a loader; times in seconds."""

    from_exec: float
    from_ready: float
    cpu: Cpu
    trace: vm_trace.Trace
    modules: frozenset[str]

    def __str__(self) -> str:
        calls = self.trace.calls
        return (
            f"{self.from_exec:.2f} s from exec, {self.from_ready:.2f} s from READY, {len(calls)} finit_module, "
            f"{self.trace.repeats} repeated, {len(self.modules)} modules, CPU {self.cpu.own:.2f} s of its own, "
            f"{self.cpu.machine:.2f} s in all, longest pause {max(vm_trace.gaps(calls), default=0.0):.2f} s"
        )


def measure(image: Image, rounds: int) -> list[Row]:
    """Measure a machine with 30 extra devices, with one lane and two: time, CPU, repeated work."""
    ours: list[Coldplug] = []
    two: list[Coldplug] = []
    peers: list[Coldplug] = []
    for _ in range(rounds):
        peers.append(once(image, "udevd"))
        ours.append(once(image, "kmodd"))
        two.append(once(image, "kmodd", conf=LANES_2))
    same_modules([*ours, *two], peers)
    rows = times("coldplug, 30 devices", ours, peers)
    rows += _costs("coldplug", ours, peers)
    rows += times("coldplug, 30 devices, Lanes=2", two, peers)
    rows += _costs("coldplug, Lanes=2", two, peers)
    return rows


def measure_beside(image: Image, rounds: int) -> list[Row]:
    """Measure the same machine with udevd started after kmodd, its rule masked; the peer is udevd alone."""
    peers: list[Coldplug] = []
    found: dict[str, list[Coldplug]] = {"": [], LANES_AUTO: []}
    for _ in range(rounds):
        peers.append(once(image, "udevd"))
        for conf, ours in found.items():
            ours.append(once(image, "kmodd", beside=True, conf=conf))
    rows = []
    for conf, ours in found.items():
        what = f"coldplug, udevd beside kmodd{conf and ', '}{conf}"
        rows += times(what, ours, peers)
        pairs = [(a.cpu.machine, b.cpu.machine) for a, b in _pairs(ours, peers)]
        rows.append(row(f"{what}, CPU of the machine", pairs, "s"))
    return rows


def measure_growth(image: Image, rounds: int, counts: Sequence[int] = (2, 4, 16)) -> list[Row]:
    """Measure the same devices with more virtual processors, each of which adds the same aliases, and draw the curves.

    With an exponent of 0 the cost does not depend on the processors, with 1 it is proportional to their number.
    """
    times, cpu, calls = [], [], []
    for cpus in counts:
        ours, peers = [], []
        for _ in range(rounds):
            peers.append(once(image, "udevd", cpus=cpus))
            ours.append(once(image, "kmodd", cpus=cpus))
        what = f"coldplug, {cpus} processors"
        pairs = _pairs(ours, peers)
        times.append(row(f"{what}, exec to last load", [(a.from_exec, b.from_exec) for a, b in pairs], "s"))
        cpu.append(row(f"{what}, CPU of daemon and loaders", [(a.cpu.own, b.cpu.own) for a, b in pairs], "s"))
        made = [(float(len(a.trace.calls)), float(len(b.trace.calls))) for a, b in pairs]
        calls.append(row(f"{what}, finit_module calls", made, "calls"))
    rows, panels = [*times, *cpu, *calls], []
    for what, unit, found in (("time", "s", times), ("CPU time", "s", cpu), ("finit_module calls", "", calls)):
        curves = {"kmodd": tuple(one.kmodd for one in found), "udevd": tuple(one.peer for one in found)}
        slopes = {name: growth.exponent(tuple(counts), curve) for name, curve in curves.items()}
        words = f"coldplug, {counts[0]} to {counts[-1]} processors, exponent of the {what}"
        rows.append(row(words, [(slopes["kmodd"], slopes["udevd"])], ""))
        lines = [
            plot.Line(f"{name}: exponent {slopes[name]:.2f}", list(zip(counts, curve, strict=True)))
            for name, curve in curves.items()
        ]
        panels.append(plot.Panel(f"Coldplug: {what}", "virtual processors", unit, lines))
    PICTURE.write_text(plot.picture(panels))
    return rows


def once(
    image: Image,
    loader: Loader,
    *,
    conf: str = "",
    beside: bool = False,
    cpus: int = 2,
    devices: Sequence[str] = DEVICES_30,
    sleeping: bool = False,
) -> Coldplug:
    """Boot, start the loader and return the results. sleeping: as in `guest`."""
    name = f"{loader} {conf}".strip() + (" beside udevd" if beside else "") + f" ({cpus} processors)"
    with guest(image, name, conf=conf, cpus=cpus, devices=devices, sleeping=sleeping) as machine:
        before = set(machine.modules())
        vm_guest.stop_witness(machine)
        vm_trace.clear(machine)
        cpu = vm_guest.cpu(machine, loader)
        vm_guest.start(machine, loader, beside=beside)
        spent = vm_guest.cpu(machine, loader).since(cpu)
        trace = vm_trace.read(machine)
        _print_complaints(vm_guest.complaints(machine))
        begin = trace.first_start(KMODD if loader == "kmodd" else UDEVD)
        if loader == "kmodd":
            ready = trace.first_start(UDEV_RULE)  # ExecStartPost=, which systemd starts at READY
        else:
            ready = vm_guest.seconds_of(machine, "systemd-udevd.service", "ActiveEnterTimestampMonotonic")
        last = trace.last_load
        loaded = frozenset(set(machine.modules()) - before)
        result = Coldplug(last - begin, last - ready, spent, trace, loaded)
        say(f"{name}: {result}")
        return result


def _print_complaints(complaints: Sequence[str]) -> None:
    """Print warnings of kmodd, which may explain unusual figures."""
    for message in complaints[:_MAX_WARNINGS]:
        say(f"kmodd: {message}")


def _pairs(ours: Sequence[Coldplug], peers: Sequence[Coldplug]) -> list[tuple[Coldplug, Coldplug]]:
    return list(zip(ours, peers, strict=True))


def times(what: str, ours: Sequence[Coldplug], peers: Sequence[Coldplug]) -> list[Row]:
    """Return rows of the time to the last load."""
    pairs = _pairs(ours, peers)
    return [
        row(f"{what}, exec to last load", [(a.from_exec, b.from_exec) for a, b in pairs], "s; peer: udevd"),
        row(f"{what}, READY to last load", [(a.from_ready, b.from_ready) for a, b in pairs], "s; peer: udevd"),
    ]


def _costs(what: str, ours: Sequence[Coldplug], peers: Sequence[Coldplug]) -> list[Row]:
    """Return rows of CPU time and of unnecessary work."""

    def one(words: str, of: Callable[[Coldplug], float], unit: str) -> Row:
        return row(f"{what}, {words}", [(of(a), of(b)) for a, b in _pairs(ours, peers)], unit)

    return [
        one("CPU of daemon and loaders", lambda run: run.cpu.own, "s; peer: udevd and its workers"),
        one("CPU of the whole machine", lambda run: run.cpu.machine, "s"),
        one("finit_module calls", lambda run: len(run.trace.calls), "calls"),
        one("repeated finit_module calls", lambda run: run.trace.repeats, "calls"),
        one("module files read again for nothing", lambda run: run.trace.wasted_bytes / 1e6, "MB"),
        one("module files read for calls that failed", lambda run: run.trace.failed_bytes / 1e6, "MB"),
    ]


def same_modules(ours: Sequence[Coldplug], peers: Sequence[Coldplug]) -> None:
    """Check that the results are comparable. Raises VmError if kmodd did not load all modules that udevd loaded."""
    wanted = frozenset.intersection(*(one.modules for one in peers))
    for one in ours:
        if missing := wanted - one.modules:
            raise VmError(f"kmodd did not load {', '.join(sorted(missing))}, which udevd loads each time")
