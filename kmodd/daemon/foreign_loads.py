"""Modules that the kernel is starting, and not for us: an earlier daemon began it, or somebody by hand. `ForeignLoads`.

A load of such a name, or of what needs it, would only block in the kernel. When its start fails the kernel does not
say so: one has to look.
"""

from __future__ import annotations

import time

from kmodd.daemon.reporter import Reporter
from kmodd.daemon.system_state import SystemState
from kmodd.dataclass import dataclass
from kmodd.planning.record import ADOPTED, NOTICE, Record
from kmodd.state.quarantine import Quarantine

EVERY = 0.5
"""Seconds between two looks."""


@dataclass(slots=True)
class _Start:
    since: float
    """time.monotonic when it was seen first."""
    adopted: bool
    """It was there when we started: what comes of it is told."""
    stuck: bool = False


class ForeignLoads:
    """Keeps an eye on them."""

    def __init__(self, view: SystemState, report: Reporter, standing: Quarantine) -> None:
        self._view = view
        self._report = report
        self._standing = standing
        self._starts: dict[str, _Start] = {}
        self._next_look = 0.0

    def adopt(self) -> None:
        """Take over what was being started before us."""
        for name, module in self._view.loaded().modules.items():
            if module.state == "coming" and name not in self._standing.crashed:
                self._starts[name] = _Start(time.monotonic(), adopted=True)
                message = f"{name} is being started since before kmodd: what comes of it is waited for"
                self._report.tell(Record(ADOPTED, NOTICE, message, (("KMODD_MODULE", name),)))

    def notice(self, name: str) -> bool:
        """Whether the kernel is starting it; from now on that is looked at. Not for what is known to have crashed."""
        if self._view.loaded().state(name) != "coming" or name in self._standing.crashed:
            return False
        start = self._starts.setdefault(name, _Start(time.monotonic(), adopted=False))
        return not start.stuck

    def busy(self) -> list[str]:
        """Those that are worth waiting for."""
        return [name for name, start in self._starts.items() if not start.stuck]

    def stuck(self) -> list[str]:
        """Those that are not."""
        return [name for name, start in self._starts.items() if start.stuck]

    def look(self, now: float) -> bool:
        """See what came of them, if it is time. True: one that was given up, or adopted, has come out."""
        if not self._starts or now < self._next_look:
            return False
        self._next_look = now + EVERY
        self._view.forget_loaded()
        ended = False
        for name, start in list(self._starts.items()):
            state, seconds = self._view.loaded().state(name), now - start.since
            if state != "coming":
                del self._starts[name]
                if start.adopted or start.stuck:
                    self._report.ended_by_others(name, state == "live", seconds)
                    ended = True
            elif not start.stuck and seconds > self._view.settings.stuck_after:
                start.stuck = True
                self._report.stuck_by_others(name, seconds)
        return ended

    def next_look(self) -> float | None:
        """When (time.monotonic) `look` is worth calling; None: there are none."""
        return self._next_look if self._starts else None
