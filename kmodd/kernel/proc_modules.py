"""Parse /proc/modules (kernel/module/procfs.c m_show)."""

from __future__ import annotations

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
    """A line of /proc/modules."""

    name: ModuleName
    size: int
    """Bytes."""
    refcnt: int | None
    """-1 for a module that is being unloaded. None if the kernel cannot unload modules (`-`)."""
    holders: tuple[ModuleName, ...]
    state: State


@dataclass(frozen=True, slots=True)
class Loaded:
    """The modules in the kernel at one moment: a snapshot that is never refreshed.

    Lines are parsed on demand: while a device waits, the state of few modules is queried.
    """

    text: str = ""
    """Content of /proc/modules, between two line breaks."""
    came: frozenset[str] = frozenset()
    """Names of further modules that are live; their size and holders are unknown."""

    @property
    def modules(self) -> Mapping[ModuleName, LoadedModule]:
        """All modules by name; lines in another format are skipped."""
        lines = [module for line in self.text.split("\n") if (module := _line(line))]
        lines += [LoadedModule(ModuleName(name), 0, 0, (), "live") for name in sorted(self.came)]
        return {module.name: module for module in lines}

    def state(self, name: str) -> State | None:
        """Return `live`, `coming` or `going`, or None if the module is not in the list."""
        if name in self.came:
            return "live"
        start = self.text.find(f"\n{name} ") + 1
        module = _line(self.text[start : self.text.find("\n", start)]) if start else None
        return module.state if module else None

    def with_live(self, name: str) -> Loaded:
        """Return a copy with the module `name` as live."""
        return Loaded(self.text, self.came | {name})

    @property
    def is_empty(self) -> bool:
        """No module is known: the kernel has none, or its list cannot be read."""
        return not (self.came or self.text.strip())


NOTHING_LOADED = Loaded()


def parse_modules(text: str) -> Loaded:
    """Return the modules in the text of /proc/modules. Raises nothing."""
    return Loaded(f"\n{text}\n")


def _line(line: str) -> LoadedModule | None:
    words = line.split()
    if len(words) < 5 or words[4] not in _STATES:
        return None
    try:
        size, refcnt = int(words[1]), None if words[2] == "-" else int(words[2])
    except ValueError:
        return None
    holders = tuple(ModuleName(name) for name in words[3].split(",") if name and name[0] not in "-[")
    return LoadedModule(ModuleName(words[0]), size, refcnt, holders, _STATES[words[4]])
