"""`kmodd devices`: list every device that asks for modules, its driver, the modules that match, and its name.

Links and `modalias` files take no lock; `uevent` files of devices without a `modalias` file are read in a child
process. A device whose probe hangs or crashed does not block the list, and has no name in it.
"""

from __future__ import annotations

import argparse
import os
import sys

from kmodd.errors import NoTree
from kmodd.host import coldplug, uevent_files
from kmodd.host.tree import Tree
from kmodd.host.udev_names import names_of
from kmodd.index.catalog import lookup_or_nothing
from kmodd.kernel.uevent import Uevent
from kmodd.planning.device_requests import wanted
from kmodd.planning.explain import quoted


def main(argv: list[str]) -> int:
    """Print the list and return 0; 1 if --unbound lists a device; 3 without a module tree."""
    parser = argparse.ArgumentParser(
        "kmodd devices",
        description="List devices that ask for modules: path, driver (- for none), matching modules, and in quotes the "
        "name in udev's database, if any.",
    )
    parser.add_argument("--unbound", action="store_true", help="only devices without a driver that a module matches")
    parser.add_argument("--root", default="", metavar="DIR", help="prefix of all paths")
    parser.add_argument("--kernel", metavar="RELEASE", help="kernel release (default: the running one)")
    options = parser.parse_args(argv)
    tree = Tree(root=options.root, release=options.kernel)
    try:
        tree.check()
    except NoTree as error:
        print(f"kmodd devices: {error}", file=sys.stderr)
        return 3
    snapshot, loaded = tree.quick_snapshot(), tree.loaded()
    lines: dict[str, str] = {}
    for event, texts in _requests(options.root, unbound=options.unbound):
        names = dict.fromkeys(hit.module for text in texts for hit in lookup_or_nothing(text, snapshot))
        if options.unbound and not names:
            continue
        states = {
            name: loaded.state(name) or ("builtin" if snapshot.catalog.is_builtin(name) else "") for name in names
        }
        words = [f"{name} ({state})" if state else name for name, state in states.items()]
        sysfs = f"/sys{event.devpath}"
        lines[sysfs] = f"{event.devpath}  {_driver(options.root + sysfs)}  {', '.join(words) or '-'}"
    called = {} if tree.root else names_of(list(lines))  # udev's database describes this machine
    for sysfs, line in lines.items():
        sys.stdout.buffer.write(os.fsencode(f"{line}{quoted(called.get(sysfs, ''))}\n"))
    sys.stdout.flush()
    for problem in snapshot.catalog.problems:
        print(f"kmodd devices: {problem}", file=sys.stderr)
    if snapshot.catalog.is_damaged:
        return 3
    return 1 if options.unbound and lines else 0


def _requests(root: str, *, unbound: bool) -> list[tuple[Uevent, list[str]]]:
    """Return each device with what it asks for: its modaliases, and the modules of udev's other rules."""
    events = [*coldplug.replay(root, unbound=unbound), *uevent_files.replay(root, unbound=unbound)]
    events.sort(key=lambda event: event.devpath)
    asking = ((event, [request.text for request in wanted(event, "coldplug")]) for event in events)
    return [(event, texts) for event, texts in asking if texts]


def _driver(folder: str) -> str:
    try:
        return os.path.basename(os.readlink(f"{folder}/driver"))
    except OSError:
        return "-"
