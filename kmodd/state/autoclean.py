"""Select unused modules for removal, as kerneld did: `Autoclean`. No I/O.

Only modules that kmodd loaded for a request of the kernel and that match `Autoclean=` are removed: a reference count of
zero does not show that a driver is unneeded.
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
"""Limit of modules loaded for the kernel's requests that are remembered."""


@dataclass(slots=True)
class Autoclean:
    """Modules loaded for the kernel's requests, with the time of their last use."""

    _idle: dict[str, float] = field(default_factory=dict)
    """Name → time of the last use that was seen (time.monotonic); only names that match `Autoclean=`."""
    _ours: set[str] = field(default_factory=set)
    """All modules loaded for a request of the kernel, dependencies included."""
    _next_look: float = 0.0
    """Time of the next check (time.monotonic)."""

    def saw(self, outcome: Outcome, settings: Settings, now: float) -> None:
        """Update the modules from the outcome of a step. now: time.monotonic."""
        name, origin = outcome.module, outcome.request.origin
        if outcome.request.removing is not None:
            if outcome.result == "removed":
                self.gone(name)
        elif origin != "request":
            if outcome.result in ("loaded", "live"):
                self.gone(name)  # a device, the boot list or an operator needs the module too
        elif outcome.result == "loaded" and len(self._ours) < MAX_MODULES:
            self._ours.add(name)
            self._arm(name, settings, now)
        elif outcome.result == "live" and name in self._idle:
            self._idle[name] = now

    def _arm(self, name: str, settings: Settings, now: float) -> None:
        if any(fnmatch.matches(pattern.replace("-", "_"), name) for pattern in settings.autoclean):
            self._idle[name] = now
            self._next_look = min(self._next_look, now + settings.autoclean_after)

    def gone(self, name: str) -> None:
        """Forget the module `name`: it was removed, or is no longer subject to autoclean."""
        self._idle.pop(name, None)
        self._ours.discard(name)

    def due(self, loaded: Callable[[], Loaded], settings: Settings, now: float) -> list[Request]:
        """Return requests to remove the modules unused for `AutocleanSec=`.

        loaded: reads the loaded modules; called only if a check is due. now: time.monotonic.
        """
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
            elif now - self._idle[name] >= settings.autoclean_after:
                self._idle[name] = now
                removing = RemovalOptions(only_deps=tuple(sorted(self._ours)), idle_sec=settings.autoclean_after)
                removals.append(Request(name, "request", removing=removing))
        self._next_look = now + min(5.0, settings.autoclean_after / 4)
        return removals

    def deadline(self) -> float | None:
        """Return when to call `due` next (time.monotonic), None if no module may be removed."""
        return self._next_look if self._idle else None

    def waiting(self, settings: Settings, now: float) -> Sequence[tuple[str, float]]:
        """Return the modules to remove if they stay unused, each with the seconds until then. now: time.monotonic."""
        return [(name, max(0.0, since + settings.autoclean_after - now)) for name, since in self._idle.items()]
