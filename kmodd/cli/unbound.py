"""The number of devices without a driver for which a module matches; `kmodd devices --unbound` lists them.

The devices are those of sysfs at this moment. Their names are looked up by the daemon, which has indexes and
configuration in memory: to read these takes more than all else that `kmodd status` does.
"""

from __future__ import annotations

from kmodd.cli.client import NotRunning, Refused, call
from kmodd.errors import NoTree
from kmodd.host.asking_devices import asked_by_devices, has_bus, is_served
from kmodd.host.regular_files import read_file
from kmodd.kernel.proc_modules import parse_modules
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

MAX_NAMES = 64
"""Names in one call of Lookup (io.kmodd)."""
MAX_CHARACTERS = 4096
"""Characters of these in all."""


def count_unbound(status: dict[str, Any], path: str) -> int | None:
    """Return the number of these devices of this machine; None: it is not known without a module tree.

    status: the reply of io.kmodd.Status. path: socket of that daemon, which has no other root.
    """
    try:
        return len(unbound_devices("", path))
    except (NotRunning, Refused):  # no module tree, an earlier version, or a name beyond its limits
        return _count_here(status)


def unbound_devices(root: str, path: str) -> list[str]:
    """Return the paths of these devices, by the daemon's look-up of their names.

    root: prefix of /sys and /proc. path: the daemon's socket. Raises NotRunning, Refused.
    """
    found = asked_by_devices(root, unbound=True)
    asking = [(event, [request.text for request in requests]) for event, requests in found]
    matches: dict[str, list[str]] = {}
    there: set[str] = set()
    for batch in batches(dict.fromkeys(name for _, names in asking for name in names)):
        reply = call("Lookup", path, names=batch)
        matches.update(zip(batch, reply["modules"], strict=True))
        there.update(reply["builtin"])
    loaded = parse_modules(decode(read_file(f"{root}/proc/modules") or b""))
    paths = []
    for event, names in asking:
        modules = {module for name in names for module in matches[name]}
        states = {"builtin" if module in there else loaded.state(module) or "" for module in modules}
        if modules and not is_served(states, on_bus=has_bus(event, root)):
            paths.append(f"/sys{event.devpath}")
    return paths


def batches(names: Iterable[str]) -> Iterator[list[str]]:
    """Yield the names, in order, as many at a time as one call takes; once an empty list if there are none.

    A name that exceeds a call is alone.
    """
    batch: list[str] = []
    size = 0
    for name in names:
        if batch and (len(batch) == MAX_NAMES or size + len(name) > MAX_CHARACTERS):
            yield batch
            batch, size = [], 0
        batch.append(name)
        size += len(name)
    yield batch


def _count_here(status: dict[str, Any]) -> int | None:
    """Return the number as `kmodd devices --unbound` finds it; None: there is no module tree."""
    from kmodd.cli.daemon_tree import tree_of  # only here: these read and import what the daemon has in memory
    from kmodd.cli.devices import without_driver

    tree = tree_of(status)
    try:
        if tree is None:
            return None
        tree.check()
    except NoTree:
        return None
    return len(without_driver(tree))
