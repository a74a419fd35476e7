"""Modules that must not be loaded: those that crashed, and those that were removed on purpose.

`Quarantine` survives a restart of the daemon as a file below /run: a new daemon must neither hand a crashed module to
the kernel, which would block forever, nor load again what an operator removed.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass, field
from kmodd.kernel.proc_modules import Loaded
from kmodd.planning.request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_MODULES = 4096
"""Limit of remembered modules, above what any machine uses."""
MAX_DEVICES_PER_MODULE = 64
"""Limit of remembered devices per module."""


@dataclass(slots=True)
class Quarantine:
    """Crashed and removed modules."""

    crashed: set[str] = field(default_factory=set)
    """Modules that the kernel keeps in state coming: another load would block forever."""
    removed: dict[str, set[str]] = field(default_factory=dict)
    """Removed module → devices that had requested it; no replay loads it again for these."""
    _asked: dict[str, set[str]] = field(default_factory=dict)
    """Module → devices that have requested it."""
    age: int = 0
    """Generation: increases with each change that must survive the daemon, and may increase without one."""

    def asks(self, module: str, devices: Iterable[str]) -> None:
        """Record that `devices` requested `module`."""
        if module in self._asked or len(self._asked) < MAX_MODULES:
            known = self._asked.setdefault(module, set())
            for device in devices:
                if len(known) < MAX_DEVICES_PER_MODULE:
                    known.add(device)

    def crash(self, module: str) -> None:
        """Record that the init of `module` crashed."""
        self.crashed.add(module)
        self.age += 1

    def has_crashed(self, module: str, loaded: Loaded) -> bool:
        """Return whether `module` crashed and must not be tried: the kernel keeps a module that oopsed, never live."""
        return module in self.crashed and (loaded.is_empty or loaded.state(module) not in (None, "live"))

    def forgive(self, loaded: Loaded) -> list[str]:
        """Take modules out of quarantine that are live or not in `loaded`: their loader died for another reason.

        It may have waited for another process that loads the same module. Returns those modules.
        """
        forgiven = [each for each in self.crashed if not self.has_crashed(each, loaded)]
        self.crashed.difference_update(forgiven)
        self.age += len(forgiven)
        return forgiven

    def remove(self, module: str) -> None:
        """Record that `module` was removed on purpose."""
        if module in self._asked:
            self.removed[module] = set(self._asked[module])
            self.age += 1

    def load(self, module: str) -> bool:
        """Record that `module` is loaded again. Return whether it was kept out for a device until now."""
        devices = self.removed.pop(module, None)
        if devices is not None:
            self.age += 1
        return bool(devices)

    def leave(self, device: str) -> None:
        """Forget an unplugged device: the next one at its path is a new device."""
        for known in (*self._asked.values(), *self.removed.values()):
            known.discard(device)
        self.age += 1

    def arrive(self, device: str) -> None:
        """Keep nothing out for a device that was plugged in: what was removed was for an earlier one at its path.

        `leave` may have missed that one: its event was lost, or its request was resolved only after it.
        """
        for known in self.removed.values():
            if device in known:
                known.discard(device)
                self.age += 1

    def is_kept_out(self, module: str, request: Request) -> bool:
        """Return whether `request` is a replay for a device that was present when `module` was removed.

        Replays are coldplug and the search for devices without a driver; they must not undo a removal.
        """
        if request.origin not in ("reconcile", "coldplug"):
            return False
        return not self.removed.get(module, set()).isdisjoint(request.devices)

    def kept_out(self, modules: Iterable[str], request: Request) -> frozenset[str]:
        """Return the modules for which `is_kept_out` holds."""
        return frozenset(module for module in modules if self.is_kept_out(module, request))

    def to_text(self) -> str:
        """Return the quarantine as text for `of_text`."""
        import json  # imported here and below only, as it would delay the boot

        removed = {name: sorted(devices) for name, devices in sorted(self.removed.items())}
        return json.dumps({"crashed": sorted(self.crashed), "removed": removed})


def of_text(text: str) -> Quarantine:
    """Parse the result of `Quarantine.to_text`. Raises ValueError for any other text."""
    import json

    words = json.loads(text)
    try:
        crashed = {str(name) for name in words["crashed"]}
        removed = {str(name): set(map(str, devices)) for name, devices in words["removed"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a quarantine: {error!r}") from None
    return Quarantine(crashed, removed)
