"""What was answered already, so that the thousandth event of a kind costs nothing: `ResultCache`.

Events that somebody made by hand, and replays of sysfs, are answered from here: what was tried is tried again only
with a cause. A device that really comes is a cause, but not the next processor of the 1,536 that come together.
"""

from __future__ import annotations

import errno

from kmodd.planning.outcome import Outcome
from kmodd.planning.request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

SOON = frozenset((errno.EBUSY, errno.EINTR, errno.EAGAIN))
"""What passes by itself: another load of it failed or ends, a signal came. Tried again soon, never remembered."""

REFUSAL_STANDS = 10.0
"""Seconds, since it was asked for last, in which a refusal holds for devices that really come, too."""

MAX_NAMES = 4096
"""So many aliases are remembered, more than a large machine has: names are not ours to choose, memory must not grow."""

_FINAL = frozenset(
    ("loaded", "live", "builtin", "nomatch", "blacklisted", "denied", "missing", "crashed", "stuck", "in_use")
)


class ResultCache:
    """Aliases with an answer. Forgets all when the index or the set of loaded modules shrinks or changes."""

    def __init__(self) -> None:
        self._known: dict[str, float | None] = {}
        """Alias → when it was asked for last, where a module refused; None: it did not."""
        self._said: set[str] = set()
        self._refused: dict[str, int] = {}

    def refusal(self, module: str) -> int:
        """The errno with which `module` refused, whatever alias named it; 0: it did not."""
        return self._refused.get(module, 0)

    def repeats(self, request: Request, now: float) -> bool:
        """It would come out as before: nothing need be done. `now`: time.monotonic."""
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
        """Remember what came of `alias`, unless it may come out otherwise without anything having changed."""
        refused = False
        for outcome in outcomes:
            if outcome.result == "failed" and outcome.by_kernel and outcome.errno not in SOON:
                self._refused[outcome.module] = outcome.errno
            refused = refused or outcome.module in self._refused
        for outcome in outcomes:
            # Not what was kept out: a look is, a trigger by hand is not.
            if outcome.result not in _FINAL and outcome.module not in self._refused:
                return
        if len(self._known) >= MAX_NAMES:
            self._known.clear()
        self._known[alias] = now if refused else None

    def first_nomatch(self, alias: str) -> bool:
        """True once for each alias until `forget_index`: a no-match is told once."""
        if alias in self._said:
            return False
        if len(self._said) >= MAX_NAMES:
            self._said.clear()
        self._said.add(alias)
        return True

    def forget(self, alias: str) -> None:
        """What kept `alias` from being answered well is gone."""
        self._known.pop(alias, None)

    def forget_modules(self) -> None:
        """A module was removed, or events were lost: what was live may not be, what refused may do now."""
        self._known.clear()
        self._refused.clear()

    def forget_index(self) -> None:
        """Index or configuration changed: anything may match now."""
        self.forget_modules()
        self._said.clear()
