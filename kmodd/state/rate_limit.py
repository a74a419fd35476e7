"""Limits the rate of journal records: `RateLimiter`. Users can have the kernel ask for the same thing without end."""

from __future__ import annotations

from kmodd.dataclass import dataclass, field
from kmodd.planning.outcome import Outcome

QUIET = 60.0
"""Seconds in which one record of a kind is enough."""
MAX_KINDS_PER_USER = 64
"""Kinds of one user's records in that time: names are his to choose."""
MAX_KINDS = 1024
"""All users' kinds in that time; beyond, records are counted only."""


@dataclass(slots=True)
class _Kind:
    since: float
    held_back: int = 0


_Key = tuple[str, str, str, int, str]
"""What was asked for, the module, what came of it, and why."""


@dataclass(slots=True)
class RateLimiter:
    """By user, what was said in the last minute."""

    held_back: int = 0
    """Records that were not written, and that none that was has counted."""
    _users: dict[int | None, dict[_Key, _Kind]] = field(default_factory=dict)

    def admit(self, outcome: Outcome, now: float) -> int | None:
        """How many like it were held back before it; None: it is to be held back. `now`: time.monotonic.

        Only what the kernel asked for and did not get: of loads there are not more than modules.
        """
        request = outcome.request
        if request.origin != "request" or request.removing or outcome.ok:
            return 0
        user = request.requester.uid if request.requester else None
        kinds = self._users.get(user, {})
        key = (request.text, outcome.module, outcome.result, outcome.errno, outcome.rule)
        kind = kinds.get(key)
        if kind is not None and now - kind.since < QUIET:
            kind.held_back += 1
            self.held_back += 1
            return None
        if kind is None and not self._has_room(user, now):
            self.held_back += 1
            return None
        told = kind.held_back if kind else 0
        self.held_back -= told
        self._users.setdefault(user, {})[key] = _Kind(now)
        return told

    def _has_room(self, user: int | None, now: float) -> bool:
        """Forget what is over, if need be."""
        if len(self._users.get(user, ())) >= MAX_KINDS_PER_USER or sum(map(len, self._users.values())) >= MAX_KINDS:
            for each, kinds in list(self._users.items()):
                self._users[each] = {key: kind for key, kind in kinds.items() if now - kind.since < QUIET}
                if not self._users[each]:
                    del self._users[each]
        return len(self._users.get(user, ())) < MAX_KINDS_PER_USER and sum(map(len, self._users.values())) < MAX_KINDS
