"""`kmodd devices`: list the devices that ask for modules: name, driver, state, and the modules that match.

Links and `modalias` files take no lock; `uevent` files of devices without a `modalias` file are read in a child
process. A device whose probe hangs or crashed does not block the list, and has no name in it.
"""

from __future__ import annotations

import json
import os

from kmodd.cli.daemon_tree import tree_for
from kmodd.cli.terminal import Colour, show, table
from kmodd.cli.verb import JSON, KERNEL, ROOT, Option, Verb
from kmodd.daemon.quarantine_file import STANDING, QuarantineFile
from kmodd.dataclass import dataclass
from kmodd.errors import NoTree
from kmodd.host.asking_devices import asked_by_devices, has_bus, is_served
from kmodd.host.tree import Tree
from kmodd.host.udev_names import names_of
from kmodd.index.catalog import Snapshot
from kmodd.kernel.proc_modules import Loaded
from kmodd.kernel.uevent import Uevent
from kmodd.planning.plan import Skip
from kmodd.planning.resolve import options_of, resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from kmodd.planning.request import Request

VERB = Verb(
    "devices",
    "List the devices that ask for modules: name in udev's database, driver, state, and the modules that match.\n\n"
    "A state is bound (to a driver), loaded (no device of a bus, its modules are in the kernel), no driver (though a "
    "module matches), blocked (by the configuration), removed (its module was, by an administrator), or no module "
    "(that matches).",
    (Option("--unbound", "only devices without a driver for which a module matches"), JSON, ROOT, KERNEL),
    status=((0, "done"), (1, "--unbound lists a device"), (3, "no module tree, or a damaged index")),
    examples=(
        ("devices --unbound", "Which hardware does not work?"),
        ("devices --json | jq -r 'select(.driver == \"xhci_hcd\").path'", "Paths of the devices of one driver."),
    ),
)  # fmt: skip

_COLOURS: dict[str, Colour] = {"no driver": "red", "blocked": "yellow", "removed": "yellow"}
_UNBOUND = frozenset(_COLOURS)
_KEPT = 16
"""Columns of name and modules that stay on a narrow terminal as long as both can be shortened."""


@dataclass(frozen=True, slots=True)
class _Device:
    """A line of the list."""

    event: Uevent
    driver: str
    """Empty: none."""
    modules: dict[str, str]
    """Matching module → `live`, `coming`, `going`, `builtin`, why it is not loaded, or an empty text."""
    state: str

    @property
    def path(self) -> str:
        return f"/sys{self.event.devpath}"


def main(argv: list[str]) -> int:
    """Print the list and return 0; 1 if --unbound lists a device; 3 with a damaged index."""
    given = VERB.parse(argv, most=0)
    if isinstance(given, int):
        return given
    root, unbound = given.get("root").rstrip("/"), "unbound" in given
    tree = tree_for(root, given.get("kernel") or None)
    snapshot = None
    try:
        tree.check()
        snapshot = tree.quick_snapshot()
    except NoTree as error:
        VERB.complain(f"{error}; the modules that match are not known")
        if unbound:
            return 3
    devices = _devices(tree, snapshot, unbound=unbound)
    names = {} if root else names_of([device.path for device in devices])  # udev's database describes this machine
    if "json" in given:
        show("".join(f"{json.dumps(_object(device, names.get(device.path, '')))}\n" for device in devices))
    elif devices:
        rows = [_row(device, names.get(device.path, "")) for device in devices]
        colours = [_COLOURS.get(device.state, "") for device in devices]
        show(table(("DEVICE", "NAME", "DRIVER", "STATE", "MODULES"), rows, (1, 4), colours, kept=_KEPT))
    for problem in snapshot.catalog.problems if snapshot else ():
        VERB.complain(str(problem))
    if not snapshot or snapshot.catalog.is_damaged:
        return 3
    return 1 if unbound and devices else 0


def without_driver(tree: Tree) -> list[str]:
    """Return the paths of devices without a driver for which a module matches."""
    return [device.path for device in _devices(tree, tree.quick_snapshot(), unbound=True)]


def _devices(tree: Tree, snapshot: Snapshot | None, *, unbound: bool) -> list[_Device]:
    root = tree.root
    look = _Look(tree, snapshot, tree.loaded(), QuarantineFile(root + STANDING, root).read().removed)
    found = [look.at(event, requests) for event, requests in asked_by_devices(root, unbound=unbound)]
    return [device for device in found if not unbound or device.state in _UNBOUND]


@dataclass(frozen=True, slots=True)
class _Look:
    """What the state of a device is judged by."""

    tree: Tree
    snapshot: Snapshot | None
    """None: there is no module tree."""
    loaded: Loaded
    removed: dict[str, set[str]]
    """Module that an administrator removed → paths of its devices."""

    def at(self, event: Uevent, requests: Sequence[Request]) -> _Device:
        """Return a device with its driver, modules and state."""
        sys = f"{self.tree.root}/sys"
        try:
            driver = os.path.basename(os.readlink(f"{sys}{event.devpath}/driver"))
        except OSError:
            driver = ""
        on_bus = has_bus(event, self.tree.root)
        modules = self._modules(requests, self.snapshot) if self.snapshot else {}
        for name in modules:
            if event.devpath in self.removed.get(name, ()) and not self.loaded.state(name):
                modules[name] = "removed"
        unmatched = "no module" if self.snapshot else "no driver"
        state = "bound" if driver else _state(set(modules.values()), on_bus=on_bus) if modules else unmatched
        return _Device(event, driver, modules, state)

    def _modules(self, requests: Sequence[Request], snapshot: Snapshot) -> dict[str, str]:
        """Return the modules that match, each with its state or why it is not loaded; empty: it would be."""
        found: dict[str, str] = {}
        tree, options = self.tree, options_of("coldplug")
        for request in requests:
            for goal in resolve(request, snapshot, self.loaded, options, tree.present, foreign=tree.foreign).goals:
                for entry in goal.entries:
                    why = entry.reason if isinstance(entry, Skip) else ""
                    if entry.module == goal.module and why != "no_match":
                        found[entry.module] = self.loaded.state(entry.module) or why
        return found


def _state(modules: set[str], *, on_bus: bool) -> str:
    """Return the state of a device without a driver by those of its modules.

    on_bus: it is a device of a bus, to which drivers bind.
    """
    if is_served(modules, on_bus=on_bus):
        return "loaded"
    if "removed" in modules:
        return "removed"
    return "blocked" if modules <= {"blacklisted", "blocked", "denied", "depends"} else "no driver"


def _row(device: _Device, name: str) -> tuple[str, ...]:
    modules = ", ".join(f"{module} ({state})" if state else module for module, state in device.modules.items())
    where = f"{device.event.subsystem} {device.event.sysname}"
    return where, name or "-", device.driver or "-", device.state, modules or "-"


def _object(device: _Device, name: str) -> dict[str, Any]:
    return {
        "path": device.path,
        "subsystem": device.event.subsystem,
        "name": name or None,
        "driver": device.driver or None,
        "state": device.state,
        "modaliases": list(device.event.modaliases),
        "modules": [{"module": module, "state": state or None} for module, state in device.modules.items()],
    }
