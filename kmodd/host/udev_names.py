"""What people call a device: out of udev's database, by pyudev.

Whatever libudev is asked about a device, it reads the device's `uevent` file first. That takes the device's lock, for
as long as a probe lasts, and cannot be killed: a child asks, and a device that it does not come back from has no name.
Such a child is left behind, and ends when the lock is free.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal

from kmodd.host import child_reader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

HUNG_AFTER = 0.5
"""Seconds without an answer after which a device is left out, and another child goes on with those behind it."""

MAX_HUNG = 8
"""Devices that may be left out so; the ones behind the last have no name either."""

_WORDS = (
    ("ID_VENDOR_FROM_DATABASE", "ID_VENDOR_ENC", "ID_VENDOR"),
    ("ID_MODEL_FROM_DATABASE", "ID_MODEL_ENC", "ID_MODEL"),
)
"""Properties that name the maker, and the thing: the first that is there counts. `_ENC` is what the device itself says;
in the form without it, blanks are underscores."""


def names_of(paths: Sequence[str]) -> dict[str, str]:
    r"""The names of devices, each a `/sys/…` path or a `/dev/…` node of this machine: by path, those that have one.

    Maker and model, else the device's node: a maker alone names no device. One line, blanks single, no `"`. Never an
    error: a device that went, one whose lock is held, a machine without pyudev, libudev or udevd have no names.
    """
    try:
        import pyudev  # costs more than the rest of a program

        context = pyudev.Context()
    except (ImportError, OSError):
        return {}
    names: dict[str, str] = {}
    rest = list(paths)
    for _ in range(MAX_HUNG):
        if not rest:
            break
        answers = _ask(context, rest)
        names.update(zip(rest, answers, strict=False))
        rest = rest[len(answers) + 1 :]
    return {path: name for path, name in names.items() if name}


def _ask(context: Any, paths: list[str]) -> list[str]:
    """The names that a child gives, in order; fewer than paths: it hung or ended at the next one."""
    child = child_reader.start(lambda pipe: _tell(context, paths, pipe))
    if child is None:
        return []
    pid, ours = child
    text = b""
    while select.select([ours], [], [], HUNG_AFTER)[0] and (data := os.read(ours, 65536)):
        text += data
    os.close(ours)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, os.WNOHANG)  # never waited for: the kernel may not let it go
    return os.fsdecode(text).split("\n")[:-1]


def _tell(context: Any, paths: list[str], pipe: int) -> None:
    """Write a line for each device. Nothing else stays open: who reads our output would wait for a child that hangs."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.closerange(3, pipe)
    os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX"))
    for path in paths:
        os.write(pipe, os.fsencode(f"{_name(context, path)}\n"))


def _name(context: Any, path: str) -> str:
    from pyudev import Devices

    find = Devices.from_device_file if path.startswith("/dev/") else Devices.from_sys_path
    try:
        properties = find(context, os.fsencode(path)).properties
        maker, model = (next(filter(None, (_plain(properties.get(key, "")) for key in keys)), "") for keys in _WORDS)
        return f"{maker} {model}".strip() if model else _plain(properties.get("DEVNAME", ""))
    except (LookupError, OSError, ValueError):  # it went, or what it says is no text
        return ""


def _plain(value: str) -> str:
    r"""A property as one line: udev's `\x20` undone, nothing left that a terminal or who cuts lines would obey."""
    value = re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), value)
    return " ".join("".join(c if c.isprintable() else " " for c in value.replace('"', "'")).split())
