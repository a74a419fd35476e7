"""Sends steps to loaders: `Dispatcher` takes an idle loader or a new one, and backs off when none can be started."""

from __future__ import annotations

import time

from kmodd.daemon.reporter import Reporter
from kmodd.loader.pool import Loader, LoaderPool
from kmodd.loader.protocol import LoaderRequest
from kmodd.planning.record import ERR, NO_LOADER, Record

LOOK_AGAIN = 5.0
"""Seconds until a loader is looked for again where none was to be had."""
TRIES = 3
"""Loaders that may be gone at once, one after the other, before there is none: those at hand may all be old ones."""


class Dispatcher:
    """Send batches to loaders; back off when none can be started."""

    def __init__(self, loaders: LoaderPool | None, report: Reporter) -> None:
        """`loaders` None: a dry run, `start` is not to be called."""
        self._loaders = loaders
        self._report = report
        self.why = ""
        """Why no loader was to be had; empty: there was one, or none was needed."""
        self._not_before = 0.0
        self._stillborn = 0
        """Loaders that have ended without a word since one last gave an answer."""

    def is_off(self) -> bool:
        """There was none, and it is too early for another look."""
        return bool(self.why) and time.monotonic() < self._not_before

    def next_look(self) -> float | None:
        """When (time.monotonic) another look is worth it; None: there is nothing to look for."""
        return self._not_before if self.is_off() else None

    def over(self, lane: Loader, *, answered: bool) -> None:
        """A loader has done what it was given; or has ended, maybe before its first word: systemd may start nothing."""
        if answered and self._loaders:
            self._loaders.give_back(lane)
            self.why, self._stillborn = "", 0
        elif not lane.pid:
            self._stillborn += 1

    def start(self, call: LoaderRequest) -> Loader | None:
        """Give `call` to a loader. None: there is none.

        Raises ValueError: longer than a loader takes.
        """
        assert self._loaders is not None
        why = "no loader: each one is gone at once"
        for _ in range(TRIES if self._stillborn < TRIES else 0):
            try:
                lane = self._loaders.get()
            except OSError as error:
                why = f"no loader: {error}"
                break
            try:
                if lane.start(call):
                    if lane.pid:
                        self.why = ""
                    return lane
            except OSError as error:
                why = f"no loader: {error}"
            self._loaders.lost(lane)
        if not self.why:
            message = f"Nothing can be loaded now: {why}; what is wanted waits"
            self._report.tell(Record(NO_LOADER, ERR, message))
        self.why, self._stillborn = why, 0
        self._not_before = time.monotonic() + LOOK_AGAIN
        return None
