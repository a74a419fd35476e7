"""How modules stand that are not simply there or not: crashed until the next boot, or removed by somebody.

`Quarantine` outlives the daemon as a text below /run: a new daemon must neither hand a crashed module to the kernel,
where its load would block for ever, nor bring back what an operator took out.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass, field
from kmodd.kernel.proc_modules import Loaded
from kmodd.planning.request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_MODULES = 4096
"""So many modules are remembered; there are not that many in any machine's use."""
MAX_DEVICES_PER_MODULE = 64
"""Devices that are remembered for each."""


@dataclass(slots=True)
class Quarantine:
    """What is known of such modules."""

    crashed: set[str] = field(default_factory=set)
    """The kernel keeps these names in state coming: to load one again would block for ever."""
    removed: dict[str, set[str]] = field(default_factory=dict)
    """Name → devices that had asked for it by then: for these it is not brought back unasked."""
    _asked: dict[str, set[str]] = field(default_factory=dict)
    """Name → devices that have asked for it."""
    age: int = 0
    """Goes up with each change that has to outlive the daemon, and may without one."""

    def asks(self, module: str, devices: Iterable[str]) -> None:
        """These devices are a cause to have it loaded."""
        if module in self._asked or len(self._asked) < MAX_MODULES:
            known = self._asked.setdefault(module, set())
            for device in devices:
                if len(known) < MAX_DEVICES_PER_MODULE:
                    known.add(device)

    def crash(self, module: str) -> None:
        """Its init took its loader along."""
        self.crashed.add(module)
        self.age += 1

    def has_crashed(self, module: str, loaded: Loaded) -> bool:
        """It is not to be tried. After an oops the kernel keeps the name: where it does not have it, there was none."""
        if module in self.crashed and not loaded.is_empty and loaded.state(module) is None:
            self.crashed.discard(module)
            self.age += 1
        return module in self.crashed

    def remove(self, module: str) -> None:
        """Somebody removed it."""
        if module in self._asked:
            self.removed[module] = set(self._asked[module])
            self.age += 1

    def load(self, module: str) -> None:
        """It is there again."""
        if self.removed.pop(module, None) is not None:
            self.age += 1

    def leave(self, device: str) -> None:
        """This device has gone: the next one at its place is new."""
        for known in (*self._asked.values(), *self.removed.values()):
            known.discard(device)
        self.age += 1

    def is_kept_out(self, module: str, request: Request) -> bool:
        """Somebody removed it while its device was there: a look at what is there does not bring it back."""
        if request.origin not in ("reconcile", "coldplug"):
            return False
        return not self.removed.get(module, set()).isdisjoint(request.devices)

    def kept_out(self, modules: Iterable[str], request: Request) -> frozenset[str]:
        """Those of some modules for which `is_kept_out` holds."""
        return frozenset(module for module in modules if self.is_kept_out(module, request))

    def to_text(self) -> str:
        """For `of_text`."""
        import json  # only here and below: a boot is not to wait for it

        removed = {name: sorted(devices) for name, devices in sorted(self.removed.items())}
        return json.dumps({"crashed": sorted(self.crashed), "removed": removed})


def of_text(text: str) -> Quarantine:
    """What `Quarantine.to_text` gave. Raises ValueError for anything else."""
    import json

    words = json.loads(text)
    try:
        crashed = {str(name) for name in words["crashed"]}
        removed = {str(name): set(map(str, devices)) for name, devices in words["removed"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a standing: {error!r}") from None
    return Quarantine(crashed, removed)
