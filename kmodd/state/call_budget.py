"""The time that calls of users may take of the event loop: a `CallBudget`. Root's calls have no limit."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

BURST = 0.1
"""Seconds of processor time that one user's calls may take at once."""
SHARE = 0.05
"""Part of the time after it; all users together have four times as much, as one user may have many uids."""

_ALL = -1
_TIMES = {_ALL: 4}
_MAX_UIDS = 1024


class CallBudget:
    """How much each user has used. Times are monotonic, in seconds."""

    def __init__(self) -> None:
        self._debts: dict[int, tuple[float, float]] = {}
        """Seconds used by a uid, or by all, and when that was noted; SHARE of the time since is paid back."""

    def may_call(self, uid: int, now: float) -> bool:
        """Return whether a call of a user is to be handled now."""
        return self.free_at(uid, now) <= now

    def free_at(self, uid: int, now: float) -> float:
        """Return when the next call of a user is to be handled; `now` or earlier: at once."""
        return now if uid == 0 else max(self._free_at(uid, now), self._free_at(_ALL, now))

    def spend(self, uid: int, seconds: float, now: float) -> None:
        """Note that a call of a user has taken so long."""
        if uid == 0:
            return
        if len(self._debts) >= _MAX_UIDS:
            self._forget(now)
        for key in (uid, _ALL):
            self._debts[key] = self._debt(key, now) + seconds, now

    def _free_at(self, key: int, now: float) -> float:
        times = _TIMES.get(key, 1)
        return now + (self._debt(key, now) - BURST * times) / (SHARE * times)

    def _debt(self, key: int, now: float) -> float:
        used, since = self._debts.get(key, (0.0, now))
        return max(0.0, used - (now - since) * SHARE * _TIMES.get(key, 1))

    def _forget(self, now: float) -> None:
        """Forget users who have paid back."""
        self._debts = {key: self._debts[key] for key in self._owing(now)}

    def _owing(self, now: float) -> Iterable[int]:
        return [key for key in self._debts if self._debt(key, now) > 0]
