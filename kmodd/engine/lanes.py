"""How many modules are loaded at a time for devices: `Lanes`.

With `Lanes=auto` that is one as long as its loader is on a processor: a second one at once would gain nothing. Where
each loader in use has been asleep for a few milliseconds (its driver waits for hardware, firmware or another module),
a job that waits gets a further lane. No lane stays open: each start asks again.
"""

from __future__ import annotations

from kmodd.config.kmodd_conf import AUTO
from kmodd.dataclass import dataclass
from kmodd.engine.events import LoaderLook
from kmodd.engine.in_flight import InFlight
from kmodd.engine.machine import Machine
from kmodd.planning.plan import Install, RemoveCommand

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from kmodd.config.kmodd_conf import Settings
    from kmodd.engine.batch import Batch

LEAST_LIMIT = 4
"""Lanes that `auto` may open on a machine with few processors: loaders that sleep need none."""

LOOK_EVERY = 0.004
"""Seconds between two looks at the loaders in use."""

RARER = 16
"""A loader that is on a processor is looked at again after this part of the time that its step has taken."""


@dataclass(slots=True)
class Lanes:
    """Decides whether a further lane may be used, and when to look at the loaders."""

    machine: Machine
    in_flight: InFlight
    _looked_at: float = 0.0
    """Time of the last look (monotonic, seconds)."""

    def limit(self, settings: Settings) -> int:
        """Number of lanes that may be in use at a time."""
        return max(LEAST_LIMIT, self.machine.processors) if settings.lanes == AUTO else settings.lanes

    def is_full(self, settings: Settings, now: float) -> bool:
        """Whether no job of a device may go to a loader now."""
        used = self.in_flight.serial()
        if used >= self.limit(settings):
            return True
        return settings.lanes == AUTO and used > 0 and not self._sleep(now)

    def _sleep(self, now: float) -> bool:
        """Whether all loaders in use sleep, those for callers included: a lane's init may wait for one of them."""
        return all(batch.sleeps(now) for batch in self.in_flight.awaited())

    def next_look(self, settings: Settings, now: float) -> float | None:
        """When to look at the loaders, if a job waits (monotonic, seconds); None: no look would open a lane."""
        if settings.lanes != AUTO or not 0 < self.in_flight.serial() < self.limit(settings):
            return None
        batches = self.in_flight.awaited()
        if self._sleep(now) or not all(map(_is_visible, batches)):
            return None
        awake = (self._looked_at - batch.since for batch in batches if batch.asleep_since is None)
        return self._looked_at + max(LOOK_EVERY, min(awake, default=0.0) / RARER)

    def loaders(self) -> tuple[tuple[int, int], ...]:
        """Number of batch and process number of each loader in use."""
        return tuple((batch.number, batch.pid) for batch in self.in_flight.awaited())

    def see(self, looks: Iterable[LoaderLook], now: float) -> None:
        """Note what was seen of the loaders at `now` (monotonic, seconds)."""
        self._looked_at = now
        for look in looks:
            if batch := self.in_flight.batches.get(look.batch):
                batch.see(look, now)


def _is_visible(batch: Batch) -> bool:
    """Whether the loader's task shows what the step does: it is known, and the work is not that of a command."""
    return batch.pid != 0 and not isinstance(batch.step, Install | RemoveCommand)
