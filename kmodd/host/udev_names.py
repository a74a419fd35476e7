"""Names of devices for people, from udev's database by pyudev.

For any query, libudev first reads the device's `uevent` file, which takes the device's lock, held during a probe, and
cannot be interrupted. So a child process reads; a device at which it hangs has no name. Such a child is left running,
and ends when the lock is released.
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
"""Seconds without an answer after which a device is skipped, and another child continues with the next one."""

MAX_HUNG = 8
"""Devices skipped at most; those after the last have no name either."""

_WORDS = (
    ("ID_VENDOR_FROM_DATABASE", "ID_VENDOR_ENC", "ID_VENDOR"),
    ("ID_MODEL_FROM_DATABASE", "ID_MODEL_ENC", "ID_MODEL"),
)
"""Properties for vendor and model, the first one present counts. Those with `_ENC` come from the device itself; without
it, spaces are underscores.
"""


def names_of(paths: Sequence[str]) -> dict[str, str]:
    """Return the names of devices by path, of those that have one. Raises nothing.

    paths: `/sys/…` paths or `/dev/…` nodes of this machine.

    A name is vendor and model, else the device node, as a vendor alone does not identify a device; one line, without
    `"` or repeated spaces. A device that is removed, or whose lock is held, has none, and neither has any without
    pyudev, libudev or udevd.
    """
    try:
        import pyudev  # here: takes longer than the rest of a program

        context = pyudev.Context()
    except (ImportError, OSError):
        return {}
    names: dict[str, str] = {}
    rest = list(paths)
    for _ in range(MAX_HUNG):
        if not rest:
            break
        answers = _read(context, rest)
        names.update(zip(rest, answers, strict=False))
        rest = rest[len(answers) + 1 :]
    return {path: name for path, name in names.items() if name}


def _read(context: Any, paths: list[str]) -> list[str]:
    """Return the names that a child reads, in order; fewer than paths if it hung or died at the next one."""
    child = child_reader.start(lambda pipe: _write_names(context, paths, pipe))
    if child is None:
        return []
    pid, ours = child
    text = b""
    while select.select([ours], [], [], HUNG_AFTER)[0] and (data := os.read(ours, 65536)):
        text += data
    os.close(ours)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, os.WNOHANG)  # without waiting: the child may hang in the kernel
    return os.fsdecode(text).split("\n")[:-1]


def _write_names(context: Any, paths: list[str], pipe: int) -> None:
    """Write a line for each device, other descriptors closed: a reader of stdout must not wait for the child."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.closerange(3, pipe)
    os.closerange(pipe + 1, os.sysconf("SC_OPEN_MAX"))
    for path in paths:
        os.write(pipe, os.fsencode(f"{device_name(context, path)}\n"))


def device_name(context: Any, path: str) -> str:
    """Return the name that udev has for the device at `path`; empty if there is none."""
    from pyudev import Devices

    find = Devices.from_device_file if path.startswith("/dev/") else Devices.from_sys_path
    try:
        properties = find(context, os.fsencode(path)).properties
        vendor, model = (next(filter(None, (plain(properties.get(key, "")) for key in keys)), "") for keys in _WORDS)
        return f"{vendor} {model}".strip() if model else plain(properties.get("DEVNAME", ""))
    except (LookupError, OSError, ValueError):  # removed, or a property is not UTF-8
        return ""


def plain(value: str) -> str:
    r"""Return a name as one line: udev's `\x20` decoded, without control characters, `"` and repeated spaces."""
    value = re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), value)
    return " ".join("".join(c if c.isprintable() else " " for c in value.replace('"', "'")).split())
