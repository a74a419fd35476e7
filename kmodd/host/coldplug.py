"""Coldplug: uevents for the devices that are present, from their `modalias` files or triggered.

Reading a `uevent` file takes the device's lock and blocks, even for SIGKILL, behind a slow or crashed probe; so
`modalias` files are read instead. `add` is written only for the few buses that have none, as each `add` also makes
udevd run its rules.
"""

from __future__ import annotations

import errno
import os

from kmodd.host.regular_files import names_in, read_file
from kmodd.kernel.uevent import Uevent
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_ATTRIBUTE = 65536
"""Bytes of one read. A sysfs attribute has at most one page, read at once (Documentation/filesystems/sysfs.rst)."""

TRIGGERED_BUSES = ("auxiliary", "cxl", "dfl", "mdio_bus", "memstick", "mmc", "tifm")
"""Buses whose devices have no `modalias` file, but whose `add` has MODALIAS or matches a rule of 80-drivers.rules."""


def replay(root: str, *, unbound: bool = False) -> Iterator[Uevent]:
    """Yield one synthetic `add` uevent for each device that has a `modalias` file, parents before their children.

    root: prefix of /sys. unbound: only devices without a driver.

    Every device that sends uevents is below /sys/bus/*/devices, /sys/class or /sys/devices/system. Each line of the
    file is an alias; some ACPI devices have two.
    """
    sys = f"{root}/sys"
    texts: dict[str, tuple[str, bytes]] = {}
    for path, subsystem in _links(sys):
        # The file first, then the link's target: most devices have no such file, and a device may vanish in between.
        if (text := read_attribute(f"{path}/modalias")) and (devpath := _devpath(path, sys)):
            texts.setdefault(devpath, (subsystem, text))
    # All processors share one `modalias`, at the root of their subsystem (drivers/base/cpu.c).
    for subsystem in names_in(f"{sys}/devices/system"):
        devpath = f"/devices/system/{subsystem}"
        if text := read_attribute(f"{sys}{devpath}/modalias"):
            texts.setdefault(devpath, (subsystem, text))
    for devpath, (subsystem, text) in sorted(texts.items()):
        if unbound and os.path.islink(f"{sys}{devpath}/driver"):
            continue
        found = tuple(alias for alias in decode(text).split("\n") if alias)
        if found:
            properties = tuple(("MODALIAS", alias) for alias in found)
            yield Uevent("add", devpath, subsystem, found, 0, synthetic=True, properties=properties)


def modules(root: str) -> Iterator[Uevent]:
    """Yield a synthetic `add` uevent for parport_pc if it is loaded: its module has a rule of its own.

    root: prefix of /sys. It is not triggered, as the daemon cannot write below /sys/module.
    """
    if os.path.isdir(f"{root}/sys/module/parport_pc"):
        yield Uevent("add", "/module/parport_pc", "module", (), 0, synthetic=True)


def trigger(root: str, uuid: str) -> list[OSError]:
    """Write `add` for the devices of TRIGGERED_BUSES.

    The kernel sends their uevents with `uuid` as SYNTH_UUID. Returns the errors; a device that vanished is none.
    """
    errors = []
    devpaths = {_devpath(path, f"{root}/sys") for path, _ in _links(f"{root}/sys", TRIGGERED_BUSES)}
    for devpath in sorted(devpaths - {""}):
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
    """Write `add` and, unless the kernel is older than 4.13, the UUID (Documentation/ABI/testing/sysfs-uevent)."""
    try:
        os.write(fd, f"add {uuid}".encode())
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        os.write(fd, b"add")


def _links(sys: str, subsystems: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield (path, subsystem) of each entry of these buses and classes, else of all: device links and a few files."""
    for kind, inner in (("bus", "/devices"), ("class", "")):
        for subsystem in subsystems or names_in(f"{sys}/{kind}"):
            folder = f"{sys}/{kind}/{subsystem}{inner}"
            for name in names_in(folder):
                yield f"{folder}/{name}", subsystem


def device_links(root: str) -> Iterator[tuple[str, str]]:
    """Yield (devpath, subsystem) of each device of a bus. root: prefix of /sys."""
    sys = f"{root}/sys"
    for subsystem in names_in(f"{sys}/bus"):
        folder = f"{sys}/bus/{subsystem}/devices"
        for name in names_in(folder):
            if devpath := _devpath(f"{folder}/{name}", sys):
                yield devpath, subsystem


def every_device(root: str) -> Iterator[tuple[str, str]]:
    """Yield (devpath, subsystem) of each device of a bus or class; some more than once. root: prefix of /sys."""
    sys = f"{root}/sys"
    for path, subsystem in _links(sys):
        if devpath := _devpath(path, sys):
            yield devpath, subsystem


def _devpath(link: str, sys: str) -> str:
    """Return the path below /sys of the device that a link points to; empty if it is no device link."""
    try:
        target = os.readlink(link)
    except OSError:
        return ""
    devpath = os.path.normpath(f"{os.path.dirname(link)}/{target}")[len(sys) :]
    return devpath if devpath.startswith("/devices/") else ""


def read_attribute(path: str) -> bytes:
    """Return the content of a sysfs attribute; empty if it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        return os.read(fd, _ATTRIBUTE)
    except OSError:
        return b""
    finally:
        os.close(fd)


def last_seqnum(root: str) -> int:
    """Return SEQNUM of the kernel's last uevent; 0 if sysfs does not have it."""
    try:
        return int(read_file(f"{root}/sys/kernel/uevent_seqnum") or b"0")
    except ValueError:
        return 0
