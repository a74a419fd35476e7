"""Devices on the command line: `/sys/…` and `/dev/…` paths, and the device that asks for modules."""

from __future__ import annotations

import os


def device_path(text: str, root: str = "") -> str:
    """Return the path /devices/… of a /sys/… or /dev/… path that exists; else the text, its /sys removed."""
    if text.startswith("/dev/"):
        try:
            status = os.stat(root + text)
        except (OSError, ValueError):
            return text
        number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        kinds = (kind for kind in ("block", "char") if os.path.exists(f"{root}/sys/dev/{kind}/{number}"))
        kind = next(kinds, None)
        if kind is None:
            return text
        text = f"/sys/dev/{kind}/{number}"
    if not text.startswith("/sys/"):
        return text.rstrip("/")
    path = os.path.realpath(root + text)
    return path.removeprefix(os.path.realpath(f"{root}/sys"))


def asking_path(path: str, root: str = "") -> str:
    """Return the path of the nearest device upwards that has a driver or an alias: a disk's, a network interface's.

    path: /devices/…; it is returned as it is if there is none.
    """
    place = path
    while place.count("/") > 1:
        folder = f"{root}/sys{place}"
        if os.path.islink(f"{folder}/driver") or os.path.exists(f"{folder}/modalias"):
            return place
        place = os.path.dirname(place)
    return path
