"""kerneld's other half: what was loaded because the kernel asked goes again once nothing uses it. `Autoclean`.

Only modules that kmodd loaded for a kernel's request, and of these only those named in `Autoclean=`: the kernel cannot
tell that a driver without a user is still wanted. Nothing here asks the machine or does anything.
"""

from __future__ import annotations

from kmodd.config.kmodd_conf import Settings
from kmodd.dataclass import dataclass, field
from kmodd.index import fnmatch
from kmodd.kernel.proc_modules import Loaded
from kmodd.names import ModuleName
from kmodd.planning.outcome import Outcome
from kmodd.planning.request import RemovalOptions, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_MODULES = 4096
"""So many modules are remembered."""


@dataclass(slots=True)
class Autoclean:
    """The modules that came so, and since when nothing has used them."""

    settings: Settings = field(default_factory=Settings)
    _idle: dict[str, float] = field(default_factory=dict)
    """Name → time.monotonic of the last use that was seen."""
    _ours: set[str] = field(default_factory=set)
    """All that came for a kernel's request, dependencies too."""
    _next_look: float = 0.0

    def saw(self, outcome: Outcome, now: float) -> None:
        """What came of a step: it may begin to be ours, be used again, or be somebody's by hand."""
        name, origin = outcome.module, outcome.request.origin
        if outcome.request.removing is not None:
            if outcome.result == "removed":
                self.gone(name)
        elif origin != "request":
            if outcome.result in ("loaded", "live"):
                self.gone(name)  # a device, a boot list or somebody wants it, too
        elif outcome.result == "loaded" and len(self._ours) < MAX_MODULES:
            self._ours.add(name)
            self._arm(name, now)
        elif outcome.result == "live" and name in self._idle:
            self._idle[name] = now

    def _arm(self, name: str, now: float) -> None:
        if any(fnmatch.matches(pattern.replace("-", "_"), name) for pattern in self.settings.autoclean):
            self._idle[name] = now
            self._next_look = min(self._next_look, now + self.settings.autoclean_after)

    def gone(self, name: str) -> None:
        """It was removed, or is not ours any more."""
        self._idle.pop(name, None)
        self._ours.discard(name)

    def due(self, loaded: Callable[[], Loaded], now: float) -> list[Request]:
        """Requests to remove what nothing has used for long enough. `loaded` looks at what the kernel has."""
        if not self._idle or now < self._next_look:
            return []
        has = loaded()
        removals = []
        for name in list(self._idle):
            module = has.modules.get(ModuleName(name))
            if module is None:
                self.gone(name)
            elif module.refcnt != 0 or module.holders or module.state != "live":
                self._idle[name] = now
            elif now - self._idle[name] >= self.settings.autoclean_after:
                self._idle[name] = now
                removing = RemovalOptions(only_deps=tuple(sorted(self._ours)), idle_sec=self.settings.autoclean_after)
                removals.append(Request(name, "request", removing=removing))
        self._next_look = now + min(5.0, self.settings.autoclean_after / 4)
        return removals

    def next_look(self) -> float | None:
        """When (time.monotonic) `due` is worth calling; None: there is nothing."""
        return self._next_look if self._idle else None

    def waiting(self, now: float) -> Sequence[tuple[str, float]]:
        """(module, seconds left) of what will go unless it is used."""
        return [(name, max(0.0, since + self.settings.autoclean_after - now)) for name, since in self._idle.items()]
