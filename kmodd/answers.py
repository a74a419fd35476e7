"""What was answered already, so that the thousandth event of a kind costs nothing: `Answers`.

Only events that somebody made by hand (a flood of synthetic `add`s) are answered from here. A device that really
comes is looked up each time: what refused then may accept now.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from kmodd.outcome import Outcome

_FINAL = (errno.ENODEV, errno.EINVAL)
"""What a driver answers for good: trying again by itself would change nothing."""


MOST = 65536
"""So many aliases are remembered: names are not ours to choose, and memory must not grow with them."""


class Answers:
    """Aliases with a final answer. Forgets all when the index or the set of loaded modules shrinks or changes."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._said: set[str] = set()
        self._refused: dict[str, int] = {}

    def refusal(self, module: str) -> int:
        """The errno with which `module` refused for good, whatever alias named it; 0: it did not."""
        return self._refused.get(module, 0)

    def knows(self, alias: str) -> bool:
        """An equal request would come out as before."""
        return alias in self._known

    def learn(self, alias: str, outcomes: Iterable[Outcome]) -> None:
        """Remember what came of `alias`, where it is final."""
        for outcome in outcomes:
            if outcome.result == "failed" and outcome.by_kernel and outcome.errno in _FINAL:
                self._refused[outcome.module] = outcome.errno
        for outcome in outcomes:
            final = outcome.ok or outcome.result in ("nomatch", "blacklisted", "denied", "crashed")
            if not final and outcome.module not in self._refused:
                return
        if len(self._known) >= MOST:
            self._known.clear()
        self._known.add(alias)

    def first_nomatch(self, alias: str) -> bool:
        """True once for each alias until `forget_index`: a no-match is told once (INTERFACE, Journal)."""
        if alias in self._said:
            return False
        if len(self._said) >= MOST:
            self._said.clear()
        self._said.add(alias)
        return True

    def forget_modules(self) -> None:
        """A module was removed, or events were lost: what was live may not be, what refused may do now."""
        self._known.clear()
        self._refused.clear()

    def forget_index(self) -> None:
        """Index or configuration changed: anything may match now."""
        self._known.clear()
        self._said.clear()
        self._refused.clear()
