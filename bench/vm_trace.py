"""What the kernel did, by its own clock: a tracefs instance of ours, read as text.

Covers finit_module calls with the module's name also where they fail, the bytes that each made the kernel read,
uevents as they are sent, programs as they are started. Times are CLOCK_MONOTONIC, in seconds.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tests.vm.machine import Machine

_HOME: Final = "/sys/kernel/tracing"
_OURS: Final = f"{_HOME}/instances/bench"

# lib/ is built notrace, so no probe fits kobject_uevent_env; netlink_broadcast's second argument is the sk_buff, whose
# data (at 208 in Debian's 6.1) starts with ACTION@DEVPATH. find_module_all is asked for the name of each module that
# is to be loaded before the kernel knows whether it will be; kernel_read_file returns what was read for it.
_PROBES: Final = (
    "p:bench/sent netlink_broadcast text=+0(+208(%si)):string",
    "p:bench/named find_module_all name=+0(%di):string",
    "r:bench/file kernel_read_file size=$retval:s64",
)
_EVENTS: Final = (
    "bench",
    "syscalls/sys_enter_finit_module",
    "syscalls/sys_exit_finit_module",
    "sched/sched_process_exec",
    "module/module_request",
)

_LINE: Final = re.compile(
    r"^\s*(?P<comm>.+)-(?P<tid>\d+)\s+\[\d+\]\s+\S+\s+(?P<time>\d+\.\d+): (?P<event>\w+)(?P<rest>.*)$", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Call:
    """One finit_module: who, when, which module, what it returned (0 or a negative errno), bytes of file read."""

    comm: str
    begin: float
    end: float
    module: str
    result: int
    size: int
    reading: float
    """Seconds until the file was read."""


@dataclass(frozen=True, slots=True)
class Trace:
    """What happened since the last `clear`, each in the order of time."""

    calls: tuple[Call, ...]
    sent: tuple[tuple[float, str], ...]
    """ACTION@DEVPATH of each uevent."""
    started: tuple[tuple[float, str], ...]
    """Path of each program that was executed."""
    asked: int
    """request_module() calls that reached the helper."""

    def first_start(self, program: str) -> float:
        """When `program` (a path) was first executed. Raises ValueError if it was not."""
        for when, path in self.started:
            if path == program:
                return when
        raise ValueError(f"{program} was never executed; what was: {sorted({path for _, path in self.started})}")

    @property
    def last_load(self) -> float:
        """When the last finit_module that succeeded returned. Raises ValueError if none did."""
        return max(call.end for call in self.calls if call.result == 0)

    @property
    def repeats(self) -> int:
        """Calls for a name that was tried already."""
        return len(self.calls) - len({call.module for call in self.calls})

    @property
    def wasted_bytes(self) -> int:
        """Bytes of module files that the kernel read for calls that failed on a name tried already.

        A first refusal (no such hardware) is an answer that somebody had to get; a second one is waste.
        """
        seen: set[str] = set()
        wasted = 0
        for call in self.calls:
            wasted += call.size if call.result != 0 and call.module in seen else 0
            seen.add(call.module)
        return wasted

    @property
    def failed_bytes(self) -> int:
        """Bytes read for all calls that failed."""
        return sum(call.size for call in self.calls if call.result != 0)


def start(machine: Machine) -> None:
    """Begin to record. GuestError where the kernel has not what it takes."""
    lines = [f"mkdir -p {_OURS}", f"echo mono > {_OURS}/trace_clock", f"echo 8192 > {_OURS}/buffer_size_kb"]
    lines += [f"echo '{probe}' >> {_HOME}/kprobe_events" for probe in _PROBES]
    lines += [f"echo 1 > {_OURS}/events/{event}/enable" for event in _EVENTS]
    machine.check(" && ".join(lines))


def clear(machine: Machine) -> None:
    """Forget what was recorded so far."""
    machine.check(f"echo > {_OURS}/trace")


def read(machine: Machine) -> Trace:
    """What was recorded since `clear`. ValueError if the kernel's buffer overflowed."""
    text = machine.check(f"busybox cat {_OURS}/trace", timeout=120)
    lost = re.search(r"LOST|entries-in-buffer/entries-written: (\d+)/(\d+)", text)
    if lost is None or lost[0] == "LOST" or lost[1] != lost[2]:
        raise ValueError(f"the kernel's trace buffer was too small: {lost[0] if lost else 'no head'}")
    return parse(text)


def parse(text: str) -> Trace:
    """A tracefs `trace` file as facts."""
    sent, started, asked = [], [], 0
    calls: list[Call] = []
    under_way: dict[str, tuple[float, list[str], list[tuple[float, int]]]] = {}
    for line in _LINE.finditer(text):
        tid, when, event, rest = line["tid"], float(line["time"]), line["event"], line["rest"]
        match event:
            case "sys_finit_module" if rest.startswith("("):
                under_way[tid] = when, [], []
            case "sys_finit_module":
                if call := under_way.pop(tid, None):
                    begin, names, files = call
                    name, size = (names or ["?"])[0], sum(size for _, size in files)
                    reading = max((read - begin for read, _ in files), default=0.0)
                    calls.append(Call(line["comm"], begin, when, name, _errno(rest), size, reading))
            case "named" if tid in under_way:
                under_way[tid][1].append(_quoted(rest))
            case "file" if tid in under_way:
                under_way[tid][2].append((when, int(rest.rpartition("size=")[2])))
            case "sent":
                sent.append((when, _quoted(rest)))
            case "sched_process_exec":
                started.append((when, rest.partition("filename=")[2].split(" ")[0]))
            case "module_request":
                asked += 1
    calls.sort(key=lambda call: call.begin)
    return Trace(tuple(calls), tuple(sent), tuple(started), asked)


def covered(calls: Iterable[Call], begin: float, end: float) -> float:
    """Seconds of [begin, end] during which at least one of the calls was under way."""
    spans = sorted((max(call.begin, begin), min(call.end, end)) for call in calls)
    total, reached = 0.0, begin
    for first, last in spans:
        if last > reached:
            total += last - max(first, reached)
            reached = last
    return total


def gaps(calls: Sequence[Call]) -> list[float]:
    """Seconds between one call's end and the next one's begin, for calls of one lane."""
    return [after.begin - before.end for before, after in itertools.pairwise(calls)]


def _errno(rest: str) -> int:
    """` -> 0xffffffffffffffef` → -17."""
    value = int(rest.rpartition("-> ")[2], 16)
    return value - (1 << 64) if value >> 63 else value


def _quoted(rest: str) -> str:
    return rest.partition('="')[2].removesuffix('"')
