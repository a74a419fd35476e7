"""What must hold of the lanes for devices, from what the daemon was told about its loaders: `LaneRules`."""

from __future__ import annotations

from dataclasses import dataclass

from kmodd.engine.batch import Batch
from kmodd.engine.engine import Engine
from kmodd.engine.events import AnyJob, LoadersSeen
from kmodd.planning.plan import Install, RemoveCommand
from tests.simulation.files import PROCESSORS

LEAST = 4
"""Lanes that `auto` may open on any machine (kmodd.conf(5))."""

A_FEW_MS = 0.003
"""Seconds for which a loader must have slept."""

SEEN_FOR = 0.05
"""Seconds for which what was seen of a loader counts."""

MAX_PAUSE = 0.005
"""Seconds until the next look, beside an eighth of the time that the step has taken."""


@dataclass
class _Nap:
    """Looks at a loader in one step that all saw it asleep, with the same processor time."""

    first: float
    last: float = 0.0


class LaneRules:
    """Follows the looks, and judges each start and each round."""

    def __init__(self) -> None:
        self._naps: dict[tuple[int, int], _Nap] = {}
        self._ticks: dict[int, int] = {}
        """Batch → processor time of its loader at the last look."""
        self._setting: int | str = 1
        """`Lanes=` after the last event."""
        self._parked: list[AnyJob] = []
        """Jobs that waited for a load after the last event."""

    def see(self, event: LoadersSeen, engine: Engine, now: float) -> None:
        """The daemon has looked at its loaders."""
        batches = engine.state.in_flight.batches
        for look in event.looks:
            if look.batch not in batches:
                continue
            key = (look.batch, batches[look.batch].done)
            has_run = look.ticks != self._ticks.get(look.batch, look.ticks)
            self._ticks[look.batch] = look.ticks
            if has_run or not look.is_asleep:
                self._naps.pop(key, None)
            else:
                self._naps.setdefault(key, _Nap(now)).last = now

    def event_is_over(self, engine: Engine) -> None:
        """The engine has handled an event."""
        self._setting = engine.state.system.settings.lanes
        self._parked = [job for _, _, job in engine.state.in_flight.parked]

    def _sleeps(self, batch: Batch, now: float) -> bool:
        nap = self._naps.get((batch.number, batch.done))
        return nap is not None and nap.last - nap.first >= A_FEW_MS and now - nap.last <= SEEN_FOR

    @staticmethod
    def limit(engine: Engine) -> int:
        """Lanes that may be in use at a time."""
        lanes = engine.state.system.settings.lanes
        return max(LEAST, PROCESSORS) if isinstance(lanes, str) else lanes

    def has_lane(self, engine: Engine, now: float) -> bool:
        """Whether a device's job may start."""
        in_flight = engine.state.in_flight
        if in_flight.serial() >= self.limit(engine):
            return False
        if isinstance(engine.state.system.settings.lanes, int) or not in_flight.serial():
            return True
        return all(self._sleeps(batch, now) for batch in in_flight.awaited())

    def is_further(self, started: Batch, engine: Engine) -> bool:
        """Whether a batch for devices has started beside others, with `Lanes=auto`."""
        others = [batch for batch in engine.state.in_flight.awaited() if batch.number < started.number]
        is_auto = engine.state.system.settings.lanes == self._setting == "auto"
        return is_auto and not all(batch.is_interactive() for batch in others)

    def wrong_start(self, started: Batch, engine: Engine, now: float) -> str:
        """Why a batch for devices must not have started; empty: it may."""
        if not self.is_further(started, engine):
            return ""
        before = [batch for batch in engine.state.in_flight.awaited() if batch.number < started.number]
        awake = [batch.module for batch in before if not self._sleeps(batch, now)]
        return f"{started.module} has a further lane, and {', '.join(awake)} was not seen asleep" if awake else ""

    def wrong_turn(self, started: Batch, engine: Engine) -> str:
        """Why a batch for the boot list is before its turn; empty: it is not, or there is one lane."""
        settings, in_flight = engine.state.system.settings, engine.state.in_flight
        request = started.job.plan.request
        if request.origin != "boot" or settings.lanes == 1 or settings.lanes != self._setting:
            return ""
        jobs = [batch.job for batch in in_flight.awaited() if batch.number < started.number]
        jobs += [job for _, _, job in in_flight.parked if any(job is before for before in self._parked)]
        for other in (job.plan.request for job in jobs if job is not started.job):
            if other.origin == "boot" and other.at and request.at and other.at.line < request.at.line:
                return f"{request.text} is loaded before {other.text} has ended"
        return ""

    def wrong_look(self, engine: Engine) -> str:
        """Why the daemon must not look at its loaders; empty: it may."""
        in_flight = engine.state.in_flight
        if isinstance(engine.state.system.settings.lanes, int):
            return "a look with a fixed number of lanes"
        if not in_flight.serial() or not (in_flight.ready or in_flight.parked):
            return "a look, and nothing waits for a lane"
        return ""

    def missing_look(self, engine: Engine, now: float) -> str:
        """Why the daemon must look at its loaders soon, and does not; empty: it does, or has no reason."""
        in_flight = engine.state.in_flight
        batches = in_flight.awaited()
        may_open = isinstance(engine.state.system.settings.lanes, str) and 0 < in_flight.serial() < self.limit(engine)
        if not (may_open and in_flight.ready) or self.has_lane(engine, now):
            return ""
        if any(not batch.pid or isinstance(batch.step, Install | RemoveCommand) for batch in batches):
            return ""
        pause = MAX_PAUSE + max(now - batch.since for batch in batches) / 8
        deadline = engine.deadline(now)
        is_soon = deadline is not None and deadline <= now + pause
        return "" if is_soon else f"{in_flight.ready[0][1].plan.request.text} waits, and no look is due"
