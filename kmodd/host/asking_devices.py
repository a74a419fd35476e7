"""The devices that ask for modules, as sysfs has them; none of them is touched."""

from __future__ import annotations

import os

from kmodd.host import coldplug, uevent_files
from kmodd.planning.device_requests import wanted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet

    from kmodd.kernel.uevent import Uevent
    from kmodd.planning.request import Request


def asked_by_devices(root: str, *, unbound: bool = False) -> list[tuple[Uevent, Sequence[Request]]]:
    """Return each device with what it asks for: its modaliases, and the modules of udev's other rules.

    root: prefix of /sys. unbound: only devices without a driver.
    """
    events = [*coldplug.replay(root, unbound=unbound), *uevent_files.replay(root, unbound=unbound)]
    events.sort(key=lambda event: event.devpath)
    asking = ((event, wanted(event, "coldplug")) for event in events)
    return [(event, requests) for event, requests in asking if requests]


def has_bus(event: Uevent, root: str) -> bool:
    """Return whether a device is one of a bus, to which drivers bind; others are served once a module is loaded."""
    return os.path.isdir(f"{root}/sys/bus/{event.subsystem}") and not event.devpath.startswith("/devices/system/")


def is_served(modules: AbstractSet[str], *, on_bus: bool) -> bool:
    """Return whether a device without a driver lacks none: it is on no bus, and one of its modules is in the kernel.

    modules: their states, `live` and `builtin` among them.
    """
    return not on_bus and not modules.isdisjoint(("live", "builtin"))
