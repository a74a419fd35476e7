"""Whether loaders can be started: after a failure, none is tried for a while. A `LoaderSupply`."""

from __future__ import annotations

from kmodd.dataclass import dataclass

RETRY_AFTER = 5.0
"""Seconds until a loader is tried again after none could be started."""


@dataclass(slots=True)
class LoaderSupply:
    """Why the last attempt failed, and when the next one is due."""

    why: str = ""
    """Empty: the last attempt succeeded, or none was made."""
    _not_before: float = 0.0

    def fail(self, why: str, now: float) -> bool:
        """No loader could be started. True: the attempt before had succeeded, so it is news."""
        is_news = not self.why
        self.why, self._not_before = why, now + RETRY_AFTER
        return is_news

    def succeed(self) -> None:
        """A loader has answered."""
        self.why = ""

    def is_off(self, now: float) -> bool:
        """Whether no loader is to be tried yet."""
        return bool(self.why) and now < self._not_before

    def deadline(self, now: float) -> float | None:
        """When a loader is tried again (monotonic, seconds); None: it can be tried now."""
        return self._not_before if self.is_off(now) else None
