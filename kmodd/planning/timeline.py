"""When the modules of a boot were loaded, what the boot waited for, and what waited meanwhile. No I/O."""

from __future__ import annotations

from bisect import bisect_right

from kmodd.dataclass import dataclass, replace
from kmodd.planning.history import Entry, subject_of_entry
from kmodd.planning.record import COLDPLUG_DONE, PREFIX, STARTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_SHOWN = ("loaded", "failed", "crashed", "stuck")
"""Results of a load that took time."""
_DONE, _STARTED = COLDPLUG_DONE.removeprefix(PREFIX), STARTED.removeprefix(PREFIX)
_AT_ONCE = 1000
"""µs that the daemon takes at most to begin a load when it can."""
_OF_DEVICES = ("coldplug", "uevent", "boot", "reconcile")
"""Sources whose loads share the lanes. Those of callers run beside them, and coldplug does not wait for them."""
_CAUSED = 1_000_000
"""µs after a load that it explains at most: what comes later waited for something else."""


@dataclass(frozen=True, slots=True)
class Part:
    """When one module of a load was loaded (µs), as far as durations tell."""

    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Load:
    """A request that loaded modules, or failed to. Times are in µs since the boot of the kernel (CLOCK_MONOTONIC)."""

    module: str
    """The requested module."""
    subject: str
    """The device with its name, the process or the list that it was for."""
    name: str
    """What the device is called; empty: unknown."""
    source: str
    """KMODD_SOURCE."""
    result: str
    """loaded, failed, crashed or stuck."""
    begin: int
    """When the event or request came."""
    start: int
    """When a loader had the first module."""
    end: int
    inits: tuple[tuple[str, int], ...]
    """Each module in load order with the duration of its load; the requested one is the last, or among them."""
    device: str = ""
    """Path /devices/…; empty: no device."""
    lane: int = 0
    """Number of loads, begun before, at whose side it ran."""
    is_awaited: bool = False
    """The end of the boot waited for it."""

    @property
    def init(self) -> int:
        """Duration of the load of the requested module, in µs."""
        return dict(self.inits).get(self.module, 0)

    @property
    def others(self) -> int:
        """Duration of the loads of all other modules, in µs."""
        return sum(usec for name, usec in self.inits if name != self.module)

    @property
    def parts(self) -> tuple[tuple[str, Part], ...]:
        """Each module with its time: the needed ones one by one from the start, the requested one at the end."""
        found, at = [], self.start
        for name, usec in self.inits:
            begin = max(self.end - usec, self.start) if name == self.module else at
            found.append((name, Part(begin, begin + usec)))
            at = begin + usec
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Timeline:
    """The loads of one boot, by their start."""

    loads: tuple[Load, ...]
    host: str = ""
    greeting: str = ""
    """The daemon's sentence at its start."""
    summary: str = ""
    """The sentence at the end of coldplug."""
    done: int = 0
    """When coldplug had ended (µs); 0: it has not, and all loads are here."""
    later: int = 0
    """Number of loads after coldplug, which are left out."""
    gap: int = 0
    """Time without a load before what the boot waited for first, the end of coldplug if for no load; 0: short (µs)."""

    @property
    def begin(self) -> int:
        """When the first request came (µs)."""
        return min((load.begin for load in self.loads), default=0)

    @property
    def end(self) -> int:
        """When the last load had ended, and coldplug (µs)."""
        return max((self.done, *(load.end for load in self.loads)))

    @property
    def lanes(self) -> int:
        """Number of loads that ran at a time, at most."""
        return max((load.lane + 1 for load in self.loads), default=0)


@dataclass(frozen=True, slots=True)
class Waited:
    """A load that waited while a module was loaded that it does not need."""

    load: Load
    usec: int
    """How long."""


def timeline_of(entries: Iterable[Entry]) -> Timeline:
    """Return the timeline of the entries of one boot, until coldplug has ended."""
    loads: list[Load] = []
    shown = Timeline(())
    for entry in entries:
        if entry.kind == _STARTED and not shown.greeting:
            shown = replace(shown, greeting=entry.message, host=entry.host)
        elif entry.kind == _DONE and not shown.done:
            shown = replace(shown, done=entry.monotonic, summary=entry.message)
        elif entry.is_decision and entry.result in _SHOWN:
            loads.append(_load_of(entry))
    early = [load for load in loads if not shown.done or load.begin <= shown.done]
    early.sort(key=lambda load: (load.start, load.end))
    marked = _marked(_in_lanes(early), shown.done)
    first = next((load.begin for load in marked if load.is_awaited), shown.done)
    return replace(shown, loads=marked, later=len(loads) - len(early), gap=_gap_before(first, marked))


def _load_of(entry: Entry) -> Load:
    """Return the load of a decision. A record without the begin of its request was written when it had ended."""
    start = entry.begin + entry.wait if entry.begin else max(entry.monotonic - entry.duration, 0)
    return Load(
        module=entry.module or entry.alias,
        subject=subject_of_entry(entry) or entry.source,
        name=entry.device_name,
        source=entry.source,
        result=entry.result,
        begin=entry.begin or start,
        start=start,
        end=start + entry.duration,
        inits=entry.inits or ((entry.module, entry.duration),),
        device=entry.devices[0] if entry.devices else "",
    )


def _in_lanes(loads: Sequence[Load]) -> list[Load]:
    """Return the loads, sorted by start, each in the first lane that is free."""
    ends: list[int] = []
    """When the last load of each lane ends."""
    placed = []
    for load in loads:
        lane = next((number for number, end in enumerate(ends) if end <= load.start), len(ends))
        ends[lane : lane + 1] = [load.end]
        placed.append(replace(load, lane=lane))
    return placed


def _marked(loads: Sequence[Load], done: int) -> tuple[Load, ...]:
    """Return the loads with those marked that the end of the boot waited for.

    From the last one back: a load that waited did so for the one that ended when it began; one that did not came with
    a device, whose parent's driver may have been loaded shortly before.
    """
    loads_of_devices = [load for load in loads if load.source in _OF_DEVICES]
    latest = [load for load in loads_of_devices if not done or load.end <= done] or loads_of_devices
    current = max(latest, key=lambda load: load.end, default=None)
    if current and current.end + _CAUSED < done:
        current = None
    awaited: set[Load] = set()
    while current and current not in awaited:
        awaited.add(current)
        current = _before(current, loads_of_devices)
    return tuple(replace(load, is_awaited=load in awaited) for load in loads)


def _gap_before(at: int, loads: Sequence[Load]) -> int:
    """Return the time before, in µs, in which no load ran or waited; 0: none came before, or not long before."""
    ends = [min(load.end, at) for load in loads if load.begin < at]
    gap = at - max(ends, default=at)
    return gap if gap > _CAUSED else 0


def _before(load: Load, loads: Sequence[Load]) -> Load | None:
    """Return the load that this one waited for; None: it waited for none."""
    ended = [
        other for other in loads
        if other.start < load.start and load.begin < other.end <= load.start + _lateness(other)
    ]  # fmt: skip
    if ended:
        return max(ended, key=lambda other: other.end)
    parents = [
        other for other in loads
        if other.device and load.device.startswith(f"{other.device}/")
        and other.start < load.begin <= other.end + _CAUSED
    ]  # fmt: skip
    return max(parents, key=lambda other: other.end, default=None)


def _lateness(load: Load) -> int:
    """Return how much later than it was the end of a load may be on record, in µs: when its last reply was read."""
    return max(_AT_ONCE, (load.end - load.start) // 8)


def waited_meanwhile(
    module: str, part: Part, loads: Sequence[Load], needs: Callable[[str], frozenset[str]], most: int | None = None
) -> list[Waited]:
    """Return the loads that waited while a module was loaded, and do not need it: the longest wait first.

    loads: by their start. needs: modules that a module needs, as far as they are known. most: number of loads that are
    returned at most; None: all.
    """
    found = []
    throughout = 0
    for other in loads[bisect_right(loads, part.begin, key=lambda load: load.start) :]:
        usec = min(other.start, part.end) - max(other.begin, part.begin)
        if usec > _AT_ONCE and not any(module in (name, *needs(name)) for name, _ in other.inits):
            found.append(Waited(other, usec))
            throughout += usec == part.end - part.begin
            if throughout == most:
                break  # no other one waited longer
    return sorted(found, key=lambda waited: -waited.usec)[:most]
