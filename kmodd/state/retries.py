"""What is tried again by itself, and for which cause: `Retries`.

EBUSY and EINTR pass by themselves: soon, a few times. A file that was missing: once it is there. Everything else waits
for a cause that the line sees anyway: a new index, a removed module, a device that comes.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass, field, replace
from kmodd.planning.outcome import Outcome
from kmodd.planning.request import Request
from kmodd.state.result_cache import SOON

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds before each further try; after the last one it is given up."""

MAX_RETRIES = 256
"""So many requests, and so many files, are kept."""


@dataclass(frozen=True, slots=True)
class _Try:
    due: float
    count: int
    request: Request


@dataclass(slots=True)
class Retries:
    """Requests that come again."""

    _soon: dict[str, _Try] = field(default_factory=dict)
    _waiting: dict[str, Request] = field(default_factory=dict)
    """By the path, as printed, of the file that is missing."""

    def after(self, request: Request, outcomes: Iterable[Outcome], now: float) -> bool:
        """Keep in mind what may come out otherwise later; who waits for an answer can ask again himself. True: soon."""
        if request.waited_for:
            return False
        again = replace(request, again=True)
        passing = False
        for outcome in outcomes:
            passing = passing or (outcome.result == "failed" and outcome.by_kernel and outcome.errno in SOON)
            if outcome.result == "missing" and outcome.path:
                self.missing(outcome.path, again)
        if not passing:
            self._soon.pop(request.text, None)
        return passing and self.soon(again, now)

    def soon(self, request: Request, now: float) -> bool:
        """Try it again in a while. False: it was tried often enough. `now`: time.monotonic."""
        before = self._soon.get(request.text)
        count = before.count + 1 if before else 0
        if count >= len(PAUSES) or (before is None and len(self._soon) >= MAX_RETRIES):
            self._soon.pop(request.text, None)
            return False
        self._soon[request.text] = _Try(now + PAUSES[count], count, request)
        return True

    def due(self, now: float) -> list[Request]:
        """What is to be tried now. Each is given once."""
        ready = [each for each in self._soon.values() if each.due <= now]
        for each in ready:
            self._soon[each.request.text] = _Try(float("inf"), each.count, each.request)
        return [each.request for each in ready]

    def next_due(self) -> float | None:
        """When `due` has something; None: never."""
        return min((each.due for each in self._soon.values() if each.due != float("inf")), default=None)

    def missing(self, path: str, request: Request) -> None:
        """It failed because this file was not there."""
        if len(self._waiting) < MAX_RETRIES:
            self._waiting[path] = request

    def missing_paths(self) -> tuple[str, ...]:
        """Files that are waited for."""
        return tuple(self._waiting)

    def came(self, present: Callable[[str], bool]) -> list[Request]:
        """Requests whose file is there now. Each is given once."""
        there = [path for path in self._waiting if present(path)]
        return [self._waiting.pop(path) for path in there]

    def forget_files(self) -> None:
        """The index changed: all is asked for again anyway."""
        self._waiting.clear()
