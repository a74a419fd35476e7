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
    """What was in the kernel at one moment: a snapshot, never asked again by whoever holds it.

    It is looked at for one name or the other while a device waits, so a line is taken apart when it is asked for.
    """

    text: str = ""
    """Of /proc/modules, with a line break before it."""
    came: frozenset[str] = frozenset()
    """Live too, and no more is known of them."""

    @property
    def modules(self) -> Mapping[ModuleName, LoadedModule]:
        """All of them; a line of another form is passed over (kernel/module/procfs.c m_show)."""
        lines = [module for line in self.text.split("\n") if (module := _line(line))]
        lines += [LoadedModule(ModuleName(name), 0, 0, (), "live") for name in sorted(self.came)]
        return MappingProxyType({module.name: module for module in lines})

    def state(self, name: str) -> State | None:
        """`live`, `coming`, `going`, or None where the kernel does not have it as a module."""
        if name in self.came:
            return "live"
        start = self.text.find(f"\n{name} ") + 1
        module = _line(self.text[start : self.text.find("\n", start)]) if start else None
        return module.state if module else None

    def with_live(self, name: str) -> Loaded:
        """The same, and this module too, of which no more is known."""
        return Loaded(self.text, self.came | {name})

    @property
    def is_empty(self) -> bool:
        """Nothing is known to be there: a kernel without modules, or one whose list cannot be read."""
        return not (self.came or self.text.strip())


NOTHING_LOADED = Loaded()


def parse_modules(text: str) -> Loaded:
    """What the text of /proc/modules says."""
    return Loaded(f"\n{text}\n")


def _line(line: str) -> LoadedModule | None:
    words = line.split()
    if len(words) < 5 or not words[1].isdigit() or words[4] not in _STATES:
        return None
    holders = tuple(ModuleName(name) for name in words[3].split(",") if name and name[0] not in "-[")
    refcnt = int(words[2]) if words[2].isdigit() else -1
    return LoadedModule(ModuleName(words[0]), int(words[1]), refcnt, holders, _STATES[words[4]])
