"""Cache of request results: `ResultCache`. It makes the thousandth event with one alias cheap.

Synthetic events and replays of sysfs are answered from the cache; a request is repeated only with a cause. A new device
is a cause, but not the next of 1,536 processors that appear together.
"""

from __future__ import annotations

import errno

from kmodd.planning.outcome import DEPENDENCY_REMOVED, KEPT_OUT, LOADER_KILLED, Outcome
from kmodd.planning.request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SOON = frozenset((errno.EBUSY, errno.EINTR, errno.EAGAIN, errno.ENOMEM))
"""Transient errors: another load of the module, a signal, no memory left. They are retried soon and never cached."""

REFUSAL_STANDS = 10.0
"""Seconds since the last request in which a refusal also holds for new devices."""

MAX_NAMES = 4096
"""Limit of cached aliases, above what a large machine has; it bounds memory, as others choose the names."""

_FINAL = frozenset(
    (
        "loaded",
        "live",
        "builtin",
        "nomatch",
        "blacklisted",
        "blocked",
        "denied",
        "missing",
        "crashed",
        "stuck",
        "in_use",
    )
)


def is_transient(outcome: Outcome) -> bool:
    """Return whether the reason of a failure may be gone soon. A loader may lack memory too, to unpack a module."""
    by_memory = outcome.errno == errno.ENOMEM
    by_chance = outcome.detail in (LOADER_KILLED, DEPENDENCY_REMOVED)
    return outcome.result == "failed" and (by_chance or (outcome.errno in SOON and (outcome.by_kernel or by_memory)))


class ResultCache:
    """Results by alias. The owner invalidates them when the index, the configuration or the loaded modules change."""

    def __init__(self) -> None:
        self._known: dict[str, float | None] = {}
        """Alias → time of the last request if a module refused (time.monotonic), else None."""
        self._denied: set[str] = set()
        """Aliases with a module that was denied."""
        self._said: set[str] = set()
        """Aliases without a match that were logged."""
        self.age = 0
        """Grows when results that were found earlier, or are being found, may no longer hold."""
        self._refused: dict[str, int] = {}
        """Module → errno of its refusal."""
        self._obstacles: set[str] = set()
        """Modules whose failure has kept a device from another module, until they are loaded."""

    def refusal(self, module: str) -> int:
        """Return the errno with which `module` refused to load, for any alias; 0 if it did not."""
        return self._refused.get(module, 0)

    def repeats(self, request: Request, now: float) -> bool:
        """Return whether the cached result answers `request`. now: time.monotonic.

        For a new device, a refusal answers up to REFUSAL_STANDS seconds after the last such request.
        """
        if request.text not in self._known:
            return False
        if request.synthetic:
            return True
        last = self._known[request.text]
        if last is None or now - last > REFUSAL_STANDS:
            return False
        self._known[request.text] = now
        return True

    def learn(self, alias: str, outcomes: Iterable[Outcome], now: float) -> None:
        """Cache `outcomes` for `alias`, unless another try may differ without a cause. now: time.monotonic."""
        refused = False
        for outcome in outcomes:
            if outcome.result == "failed" and outcome.by_kernel and not is_transient(outcome):
                self._refused[outcome.module] = outcome.errno
            refused = refused or outcome.module in self._refused
        is_held = any(outcome.result in ("blocked", "missing", "stuck") for outcome in outcomes)
        for outcome in outcomes:
            if is_held and outcome.result == "not_attempted" and outcome.detail != KEPT_OUT:
                continue  # as long as the module that it needs is blocked, missing or stuck, whose end drops the result
            # Modules that were kept out are not cached: a replay skips them, a synthetic event does not.
            if outcome.result not in _FINAL and outcome.module not in self._refused:
                return
        if len(self._known) >= MAX_NAMES:
            self._known.clear()
            self._denied.clear()
        if any(outcome.result == "denied" for outcome in outcomes):
            self._denied.add(alias)
        self._known[alias] = now if refused else None

    def note_obstacles(self, outcomes: Sequence[Outcome]) -> None:
        """Note which modules have failed where another one was not attempted for that."""
        failed = {outcome.module for outcome in outcomes if outcome.result == "failed"}
        if failed and any(outcome.result == "not_attempted" for outcome in outcomes):
            self._obstacles |= failed

    def pop_obstacle(self, module: str) -> bool:
        """Return whether `module`, which is loaded now, was noted by `note_obstacles`, and forget that."""
        was_noted = module in self._obstacles
        self._obstacles.discard(module)
        return was_noted

    def first_nomatch(self, alias: str) -> bool:
        """Return True for the first call per alias since `forget_index`; a missing match is logged once."""
        if alias in self._said:
            return False
        if len(self._said) >= MAX_NAMES:
            self._said.clear()
        self._said.add(alias)
        return True

    def forget(self, alias: str) -> None:
        """Drop the result of `alias`: the cause of its failure is gone."""
        self._known.pop(alias, None)

    def forget_denied(self) -> None:
        """Drop the results of denied requests: a module file may have become root's."""
        for alias in self._denied:
            self._known.pop(alias, None)
        self._denied.clear()

    def forget_modules(self) -> None:
        """Drop all results after a removed module or lost events: a module may be gone, a refusal may be obsolete."""
        self.age += 1
        self._known.clear()
        self._denied.clear()
        self._refused.clear()

    def forget_index(self) -> None:
        """Drop all results and logged aliases: index or configuration changed, so any alias may match now."""
        self.forget_modules()
        self._said.clear()
