"""Kernel trace of a guest, from a tracefs instance of its own, read as text.

Contains finit_module calls with the module's name, even if they fail, and the bytes read for each; uevents sent; and
programs executed. Times are CLOCK_MONOTONIC, in seconds.
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

# lib/ is built notrace, so kobject_uevent_env cannot be probed; netlink_broadcast's second argument is the sk_buff,
# whose data (at 208 in Debian's 6.1) starts with ACTION@DEVPATH. find_module_all is called with the name of each module
# before its load can fail; kernel_read_file returns the number of bytes read.
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
    """A finit_module call; `result` is 0 or a negative errno, `size` the bytes of the file read."""

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
    """Events since the last `clear`, in order of time."""

    calls: tuple[Call, ...]
    sent: tuple[tuple[float, str], ...]
    """ACTION@DEVPATH of each uevent."""
    started: tuple[tuple[float, str], ...]
    """Path of each program that was executed."""
    asked: int
    """request_module() calls that reached the helper."""

    def first_start(self, program: str) -> float:
        """Return the time of the first execution of `program` (a path). Raises ValueError if there is none.

        Units of Debian 12 name programs below /lib, later ones below /usr/lib: the same folder, as /usr is merged.
        """
        for when, path in self.started:
            if path.removeprefix("/usr") == program.removeprefix("/usr"):
                return when
        raise ValueError(f"{program} was not executed; found: {sorted({path for _, path in self.started})}")

    @property
    def last_load(self) -> float:
        """End of the last finit_module that succeeded. Raises ValueError if none did."""
        return max(call.end for call in self.calls if call.result == 0)

    @property
    def repeats(self) -> int:
        """Number of calls for a name that was called before."""
        return len(self.calls) - len({call.module for call in self.calls})

    @property
    def wasted_bytes(self) -> int:
        """Bytes of module files that the kernel read for failed calls of a name called before.

        The first failure of a module (no such hardware) is unavoidable, a second one is not.
        """
        seen: set[str] = set()
        wasted = 0
        for call in self.calls:
            wasted += call.size if call.result != 0 and call.module in seen else 0
            seen.add(call.module)
        return wasted

    @property
    def failed_bytes(self) -> int:
        """Bytes read for all failed calls."""
        return sum(call.size for call in self.calls if call.result != 0)


def start(machine: Machine) -> None:
    """Start tracing. Raises GuestError if the kernel does not support it."""
    lines = [f"mkdir -p {_OURS}", f"echo mono > {_OURS}/trace_clock", f"echo 8192 > {_OURS}/buffer_size_kb"]
    lines += [f"echo '{probe}' >> {_HOME}/kprobe_events" for probe in _PROBES]
    lines += [f"echo 1 > {_OURS}/events/{event}/enable" for event in _EVENTS]
    machine.check(" && ".join(lines))


def clear(machine: Machine) -> None:
    """Discard the trace."""
    machine.check(f"echo > {_OURS}/trace")


def read(machine: Machine) -> Trace:
    """Return the trace since `clear`. Raises ValueError if the kernel's buffer overflowed."""
    text = machine.check(f"busybox cat {_OURS}/trace", timeout=120)
    lost = re.search(r"LOST|entries-in-buffer/entries-written: (\d+)/(\d+)", text)
    if lost is None or lost[0] == "LOST" or lost[1] != lost[2]:
        raise ValueError(f"the kernel's trace buffer was too small: {lost[0] if lost else 'no head'}")
    return parse(text)


def parse(text: str) -> Trace:
    """Parse a tracefs `trace` file."""
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
    """Return the seconds of [begin, end] during which at least one call was running."""
    spans = sorted((max(call.begin, begin), min(call.end, end)) for call in calls)
    total, reached = 0.0, begin
    for first, last in spans:
        if last > reached:
            total += last - max(first, reached)
            reached = last
    return total


def gaps(calls: Sequence[Call]) -> list[float]:
    """Return the seconds between the end of a call and the start of the next, for calls of one lane."""
    return [after.begin - before.end for before, after in itertools.pairwise(calls)]


def _errno(rest: str) -> int:
    """Parse a return value: ` -> 0xffffffffffffffef` → -17."""
    value = int(rest.rpartition("-> ")[2], 16)
    return value - (1 << 64) if value >> 63 else value


def _quoted(rest: str) -> str:
    return rest.partition('="')[2].removesuffix('"')
