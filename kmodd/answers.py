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


class Answers:
    """Aliases with a final answer. Forgets all when the index or the set of loaded modules shrinks or changes."""

    def __init__(self) -> None:
        self._known: dict[str, bool] = {}
        self._said: set[str] = set()
        self._refused: dict[str, int] = {}

    def refusal(self, module: str) -> int:
        """The errno with which `module` refused for good, whatever alias named it; 0: it did not."""
        return self._refused.get(module, 0)

    def knows(self, alias: str) -> bool:
        """An equal request would come out as before."""
        return alias in self._known

    def is_nomatch(self, alias: str) -> bool:
        """The answer known was that nothing matches: only as good as the index is fresh."""
        return self._known.get(alias) is False

    def learn(self, alias: str, outcomes: Iterable[Outcome]) -> None:
        """Remember what came of `alias`, where it is final."""
        matched = True
        for outcome in outcomes:
            if outcome.result == "failed" and outcome.errno in _FINAL:
                self._refused[outcome.module] = outcome.errno
        for outcome in outcomes:
            if outcome.result == "nomatch":
                matched = False
            elif not (
                outcome.ok
                or outcome.result in ("blacklisted", "denied")
                or outcome.module in self._refused
            ):
                return
        self._known[alias] = matched

    def first_nomatch(self, alias: str) -> bool:
        """True once for each alias until `forget_index`: a no-match is told once (INTERFACE, Journal)."""
        if alias in self._said:
            return False
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
