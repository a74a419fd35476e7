"""The devices that the drivers of a module are bound to."""

from __future__ import annotations

import os

from kmodd.host.regular_files import names_in


def devices_of(module: str, root: str = "") -> tuple[str, ...]:
    """Return the paths `/sys/devices/…` of the devices bound to drivers of a module, sorted; none if it has none."""
    top = os.path.realpath(f"{root}/sys/devices")
    found = []
    for driver in names_in(f"{root}/sys/module/{module}/drivers"):
        folder = os.path.realpath(f"{root}/sys/module/{module}/drivers/{driver}")
        for name in names_in(folder):
            place = os.path.realpath(f"{folder}/{name}")
            if os.path.islink(f"{folder}/{name}") and place.startswith(f"{top}/"):
                found.append("/sys/devices" + place.removeprefix(top))
    return tuple(sorted(found))
