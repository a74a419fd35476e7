"""Limit the rate of journal records: `RateLimiter`. Any user can make the kernel repeat a request without end."""

from __future__ import annotations

from kmodd.dataclass import dataclass, field
from kmodd.planning.outcome import Outcome

QUIET = 60.0
"""Seconds in which at most one record of a kind is written."""
MAX_KINDS_PER_USER = 64
"""Limit of kinds per user in that time, as users choose the requested names."""
MAX_KINDS = 1024
"""Limit of kinds of all users in that time; records beyond it are only counted."""


@dataclass(slots=True)
class _Kind:
    since: float
    held_back: int = 0


_Key = tuple[str, str, str, int, str]
"""Request, module, result, errno and policy rule."""


@dataclass(slots=True)
class RateLimiter:
    """Kinds of records of the last QUIET seconds, by user."""

    held_back: int = 0
    """Number of suppressed records that no written record has reported."""
    _users: dict[int | None, dict[_Key, _Kind]] = field(default_factory=dict)

    def admit(self, outcome: Outcome, now: float) -> int | None:
        """Return how many records like that of `outcome` were suppressed before it, None to suppress this one too.

        Only failed requests of the kernel are limited: successful loads are limited by the number of modules.
        now: time.monotonic.
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
        suppressed = kind.held_back if kind else 0
        self.held_back -= suppressed
        self._users.setdefault(user, {})[key] = _Kind(now)
        return suppressed

    def _has_room(self, user: int | None, now: float) -> bool:
        """Return whether another kind can be remembered; expired kinds are dropped if a limit is reached."""
        if len(self._users.get(user, ())) >= MAX_KINDS_PER_USER or sum(map(len, self._users.values())) >= MAX_KINDS:
            for each, kinds in list(self._users.items()):
                self._users[each] = {key: kind for key, kind in kinds.items() if now - kind.since < QUIET}
                if not self._users[each]:
                    del self._users[each]
        return len(self._users.get(user, ())) < MAX_KINDS_PER_USER and sum(map(len, self._users.values())) < MAX_KINDS
