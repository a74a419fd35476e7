"""Coldplug: the devices that are present, read from sysfs."""

from __future__ import annotations

import errno
import os

from kmodd.kernel.uevent import Uevent
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_ATTRIBUTE = 65536
"""Bytes. A file of sysfs has at most a page, and is given whole (Documentation/filesystems/sysfs.rst)."""

TRIGGERED_BUSES = ("auxiliary", "cxl", "dfl", "mdio_bus", "memstick", "mmc", "tifm")
"""Buses whose devices have no `modalias` file and yet say one, or match a rule, in their `add` event.

They are made to speak by writing `add`: reading a `uevent` file would take the device's lock and hang, unkillably,
behind a slow or crashed probe. Every other bus is only read, because each `add` also makes udevd do all its rules.
"""


def replay(root: str, *, unbound: bool = False) -> Iterator[Uevent]:
    """What the devices that are there now would have said: one synthetic `add` for each that has a `modalias` file.

    `unbound`: only those without a driver.

    Every device that sends events stands below /sys/bus/*/devices, /sys/class or /sys/devices/system. All lines of
    the file count: some ACPI devices have two. In the order of the paths, so a parent comes before its children.
    """
    sys = f"{root}/sys"
    texts: dict[str, tuple[str, bytes]] = {}
    for path, subsystem in _links(sys):
        # Before it is asked where the link leads to: most have no such file, and a device may go away meanwhile.
        if (text := _text(f"{path}/modalias")) and (devpath := _devpath(path, sys)):
            texts.setdefault(devpath, (subsystem, text))
    # Processors have one `modalias` for all of them, at the root of their subsystem (drivers/base/cpu.c).
    for subsystem in _names(f"{sys}/devices/system"):
        devpath = f"/devices/system/{subsystem}"
        if text := _text(f"{sys}{devpath}/modalias"):
            texts.setdefault(devpath, (subsystem, text))
    for devpath, (subsystem, text) in sorted(texts.items()):
        if unbound and os.path.islink(f"{sys}{devpath}/driver"):
            continue
        found = tuple(alias for alias in decode(text).split("\n") if alias)
        if found:
            properties = tuple(("MODALIAS", alias) for alias in found)
            yield Uevent("add", devpath, subsystem, found, 0, synthetic=True, properties=properties)


def trigger(root: str, uuid: str) -> list[OSError]:
    """Write `add` to the devices of TRIGGERED_BUSES, and to parport_pc, whose module is a rule of its own.

    Their events come in through the kernel's group like any other, with `uuid` as SYNTH_UUID. The answer is what went
    wrong, but not that a device went away meanwhile.
    """
    errors = []
    talkers = {_devpath(path, f"{root}/sys") for path, _ in _links(f"{root}/sys", TRIGGERED_BUSES)}
    for devpath in [*sorted(talkers - {""}), "/module/parport_pc"]:
        try:
            fd = os.open(f"{root}/sys{devpath}/uevent", os.O_WRONLY | os.O_CLOEXEC)
            try:
                _write_add(fd, uuid)
            finally:
                os.close(fd)
        except FileNotFoundError:
            continue
        except OSError as error:
            errors.append(error)
    return errors


def _write_add(fd: int, uuid: str) -> None:
    """Documentation/ABI/testing/sysfs-uevent: an action, then a UUID since kernel 4.13; earlier ones know none."""
    try:
        os.write(fd, f"add {uuid}".encode())
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        os.write(fd, b"add")


def _links(sys: str, subsystems: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """(path, subsystem) of every entry of a bus or a class, or of these alone: links to devices, and a few files."""
    for kind, inner in (("bus", "/devices"), ("class", "")):
        for subsystem in subsystems or _names(f"{sys}/{kind}"):
            folder = f"{sys}/{kind}/{subsystem}{inner}"
            for name in _names(folder):
                yield f"{folder}/{name}", subsystem


def _devpath(link: str, sys: str) -> str:
    """The path below /sys of the device that a link leads to; empty where it is none."""
    try:
        target = os.readlink(link)
    except OSError:
        return ""
    devpath = os.path.normpath(f"{os.path.dirname(link)}/{target}")[len(sys) :]
    return devpath if devpath.startswith("/devices/") else ""


def _text(path: str) -> bytes:
    """All of an attribute; empty where it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, _ATTRIBUTE)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def last_seqnum(root: str) -> int:
    """The kernel's count of events so far; 0 where sysfs does not say."""
    try:
        with open(f"{root}/sys/kernel/uevent_seqnum") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0
