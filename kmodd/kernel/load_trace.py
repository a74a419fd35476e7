"""Parse tracefs' `trace` of the event `module_load` (include/trace/events/module.h)."""

from __future__ import annotations

import re

from kmodd.dataclass import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_LINE: Final = re.compile(
    r"^ *(?P<comm>.{1,40})-(?P<pid>[0-9]{1,10}) +(?:\([^)]*\) +)?\[[0-9]+\] +\S+ +(?P<seconds>[0-9]{1,12})\."
    r"(?P<usec>[0-9]{6}): module_load: (?P<module>\S+)",
    re.ASCII | re.MULTILINE,
)
"""A line as in Documentation/trace/ftrace.rst: `  insmod-812     [001] .....    92.104523: module_load: tun`."""
_FORGOTTEN: Final = "<...>"
"""Name of a thread that saved_cmdlines no longer has (Documentation/trace/ftrace.rst)."""


@dataclass(frozen=True, slots=True)
class ModuleLoad:
    """A load of a module, by the kernel's own record."""

    module: str
    comm: str
    """Name of the thread that loaded it, at most 15 bytes; empty: the kernel has forgotten it."""
    pid: int
    """Number of that thread."""
    monotonic: int
    """When its init was about to start (CLOCK_MONOTONIC, µs)."""


def parse(text: str) -> dict[str, ModuleLoad]:
    """Return the last load of each module, by module. Other lines, as the header and those of lost events, are skipped.

    text: of a trace whose clock is `mono`, from which events are in the order of time.
    """
    found: dict[str, ModuleLoad] = {}
    for line in _LINE.finditer(text):
        usec = int(line["seconds"]) * 1_000_000 + int(line["usec"])
        before = found.get(line["module"])
        if before is None or before.monotonic <= usec:
            comm = "" if line["comm"] == _FORGOTTEN else line["comm"]
            found[line["module"]] = ModuleLoad(line["module"], comm, int(line["pid"]), usec)
    return found
