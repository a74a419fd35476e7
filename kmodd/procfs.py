"""Texts of /proc that say what the kernel holds: /proc/modules."""

from __future__ import annotations

from types import MappingProxyType

from kmodd.dataclass import dataclass
from kmodd.names import ModuleName

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    State = Literal["live", "coming", "going"]
else:
    State = str

_STATES: dict[str, State] = {"Live": "live", "Loading": "coming", "Unloading": "going"}


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """One line of /proc/modules."""

    name: ModuleName
    size: int
    """Bytes."""
    refcnt: int
    """-1 where the kernel cannot unload modules."""
    holders: tuple[ModuleName, ...]
    state: State


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was in the kernel at one moment: a snapshot, never asked again by whoever holds it."""

    modules: Mapping[ModuleName, LoadedModule]

    def state(self, name: str) -> State | None:
        """`live`, `coming`, `going`, or None where the kernel does not have it as a module."""
        module = self.modules.get(ModuleName(name))
        return module.state if module else None

    def with_live(self, name: str) -> Loaded:
        """The same, and this module too, of which no more is known."""
        known = ModuleName(name)
        module = LoadedModule(known, 0, 0, (), "live")
        return Loaded(MappingProxyType({**self.modules, known: module}))


NOTHING_LOADED = Loaded(MappingProxyType({}))


def parse_modules(text: str) -> Loaded:
    """Read the text of /proc/modules (kernel/module/procfs.c m_show); a line of another form is passed over."""
    found: dict[ModuleName, LoadedModule] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) < 5 or not words[1].isdigit() or words[4] not in _STATES:
            continue
        holders = tuple(ModuleName(name) for name in words[3].split(",") if name and name[0] not in "-[")
        refcnt = int(words[2]) if words[2].isdigit() else -1
        name = ModuleName(words[0])
        found[name] = LoadedModule(name, int(words[1]), refcnt, holders, _STATES[words[4]])
    return Loaded(MappingProxyType(found))
