"""Requests to retry, and when: `Retries`.

Transient failures (EBUSY, EINTR, EAGAIN, ENOMEM, a killed loader, a dependency that was removed meanwhile) are retried
soon and a few times, a missing file when it appears. All other failures wait for a cause that the daemon sees anyway: a
new index, a removed module, a new device.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass, field, replace
from kmodd.planning.outcome import KEPT_OUT, Outcome
from kmodd.planning.request import Request
from kmodd.state.result_cache import is_transient

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds before each retry of a transient error; the request is dropped after the last one."""

MAX_RETRIES = 256
"""Limit of requests with transient failures."""

MAX_WAITING = 4096
"""Limit of requests that lack a file, above what a large machine has; it bounds memory, as others choose the names."""


@dataclass(frozen=True, slots=True)
class _Try:
    due: float
    count: int
    request: Request


@dataclass(slots=True)
class Retries:
    """Requests that will be retried."""

    _soon: dict[str, _Try] = field(default_factory=dict)
    """By the text of the request."""
    _waiting: dict[str, dict[str, Request]] = field(default_factory=dict)
    """By the path of the missing file, as printed, then by the text of the request."""

    def after(self, request: Request, outcomes: Iterable[Outcome], now: float) -> bool:
        """Schedule retries of `request` for its failed outcomes. Return whether one is due soon.

        A request with a waiting caller is not retried: the caller can repeat it. now: time.monotonic.
        """
        if request.is_interactive:
            return False
        again = replace(request, again=True)
        passing = kept_out = False
        for outcome in outcomes:
            passing = passing or is_transient(outcome)
            kept_out = kept_out or outcome.detail == KEPT_OUT
            if outcome.result == "missing" and outcome.path:
                self.missing(outcome.path, again)
        if not (passing or kept_out):  # what is kept out for one device may be retried for another one
            self._soon.pop(request.text, None)
        return passing and self.soon(again, now)

    def soon(self, request: Request, now: float) -> bool:
        """Schedule the next retry of `request`. Return False after the last one, or if too many wait.

        now: time.monotonic.
        """
        before = self._soon.get(request.text)
        count = before.count + 1 if before else 0
        if count >= len(PAUSES) or (before is None and len(self._soon) >= MAX_RETRIES):
            self._soon.pop(request.text, None)
            return False
        self._soon[request.text] = _Try(now + PAUSES[count], count, request)
        return True

    def due(self, now: float) -> list[Request]:
        """Return the requests whose retry is due, each once. now: time.monotonic."""
        ready = [each for each in self._soon.values() if each.due <= now]
        for each in ready:
            self._soon[each.request.text] = _Try(float("inf"), each.count, each.request)
        return [each.request for each in ready]

    def deadline(self) -> float | None:
        """Return when the next retry is due (time.monotonic), None without one."""
        return min((each.due for each in self._soon.values() if each.due != float("inf")), default=None)

    def missing(self, path: str, request: Request) -> None:
        """Retry `request` when the file `path` exists."""
        if sum(map(len, self._waiting.values())) < MAX_WAITING:
            self._waiting.setdefault(path, {})[request.text] = request

    def missing_paths(self) -> tuple[str, ...]:
        """Return the paths of the missing files."""
        return tuple(self._waiting)

    def came(self, present: Callable[[str], bool]) -> list[Request]:
        """Return the requests whose file exists now, each once. present: whether a path exists."""
        found: dict[str, Request] = {}
        for path in [path for path in self._waiting if present(path)]:
            found |= self._waiting.pop(path)
        return list(found.values())

    def forget_files(self) -> None:
        """Forget the missing files: the index changed, so all devices are requested again."""
        self._waiting.clear()
