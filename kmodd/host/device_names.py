"""Names of devices for journal records, from the kernel's attributes and udev's hardware database. `DeviceNames`.

The kernel reads USB strings under the device's lock, which a probe holds, and no signal ends that. So a child process
reads; nothing waits for it: a record that is written before has no name.
"""

from __future__ import annotations

import contextlib
import os
import re

from kmodd.host import child_reader
from kmodd.host.regular_files import read_file
from kmodd.host.udev_names import plain
from kmodd.text import decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_CHILDREN = 4
"""Children at a time; some may hang. Devices that come meanwhile have no name."""

MAX_NAMES = 4096
"""Names that are kept, above the devices of a large machine."""

MAX_LENGTH = 40
"""Characters of a name."""

_IN_BRACKETS = re.compile(r" ?(?:\([^()]*\)|\[[^][]*\])")
"""Parts of a name in the hardware database that a sentence has no room for."""


class DeviceNames:
    """The names that children have read."""

    def __init__(self, root: str) -> None:
        """`root`: prefix of /sys."""
        self._root = root
        self._names: dict[str, str] = {}
        self._pipes: dict[int, bytes] = {}
        """Read end of each child → the part of a line that it has sent."""

    def start(self, devpaths: Iterable[str]) -> None:
        """Begin to read the names of devices, by their paths below /sys."""
        self._collect()
        wanted = [devpath for devpath in devpaths if devpath not in self._names and not self._of_usb_device(devpath)]
        if not wanted or len(self._pipes) >= MAX_CHILDREN:
            return
        child = child_reader.start(lambda pipe: _write_names(self._root, wanted, pipe))
        if child is not None:
            pipe = child[1]
            os.set_blocking(pipe, False)
            self._pipes[pipe] = b""

    def get(self, devpath: str) -> str:
        """Return the name of a device as far as it was read; empty: it has none, or was not read yet."""
        self._collect()
        return self._names.get(devpath) or self._of_usb_device(devpath)

    def _of_usb_device(self, devpath: str) -> str:
        """Return the name of the USB device that a device is an interface of (`…/2-1/2-1:1.0`); empty: unknown."""
        parent, _, own = devpath.rpartition("/")
        is_interface = own.startswith(f"{parent.rpartition('/')[2]}:")
        return self._names.get(parent, "") if is_interface else ""

    def _collect(self) -> None:
        """Take what the children have sent."""
        for pipe in list(self._pipes):
            with contextlib.suppress(BlockingIOError):
                while data := os.read(pipe, 65536):
                    *lines, self._pipes[pipe] = (self._pipes[pipe] + data).split(b"\n")
                    for line in lines:
                        devpath, _, name = decode(line).partition("\t")
                        self._keep(devpath, name)
                os.close(pipe)
                del self._pipes[pipe]

    def _keep(self, devpath: str, name: str) -> None:
        if len(self._names) >= MAX_NAMES:
            self._names.clear()
        self._names[devpath] = name


def _write_names(root: str, devpaths: list[str], pipe: int) -> None:
    """Write a line `DEVPATH TAB NAME` for each device."""
    look_up: Callable[[str], str] | None = None
    for devpath in devpaths:
        name = _usb_name(f"{root}/sys", devpath)
        if not name and (modalias := _attribute(f"{root}/sys{devpath}/modalias")).startswith("pci:"):
            look_up = look_up or _hardware_database()
            name = _IN_BRACKETS.sub("", look_up(modalias))
        name = name or _own_name(f"{root}/sys{devpath}")
        os.write(pipe, encode(f"{devpath}\t{shown(name)}\n"))


def shown(name: str) -> str:
    """Return a name in one line of at most MAX_LENGTH characters, without control characters and double quotes."""
    name = plain(name)
    return name if len(name) <= MAX_LENGTH else f"{name[: MAX_LENGTH - 1].rstrip()}…"


def _usb_name(sys: str, devpath: str) -> str:
    """Return the product string of a USB device, also of one of its interfaces; else its manufacturer."""
    for folder in (devpath, devpath.rpartition("/")[0]):
        if os.path.exists(f"{sys}{folder}/idVendor"):
            return _attribute(f"{sys}{folder}/product") or _attribute(f"{sys}{folder}/manufacturer")
    return ""


def _own_name(device: str) -> str:
    """Return what a disk or card says of itself, else the name of a network interface or disk of the device."""
    model = _attribute(f"{device}/model") or _attribute(f"{device}/name")
    if model:
        vendor = _attribute(f"{device}/vendor")
        return f"{vendor} {model}" if vendor and not vendor.startswith("0x") else model
    for kind in ("net", "block"):
        with contextlib.suppress(OSError):
            return min(os.listdir(f"{device}/{kind}"), default="")
    return ""


def _attribute(path: str) -> str:
    """Return the text of a sysfs attribute; empty if it cannot be read."""
    return decode(read_file(path) or b"").strip()


def _hardware_database() -> Callable[[str], str]:
    """Return a function from modalias to the model in udev's hardware database, as `systemd-hwdb query` (hwdb(7)).

    By libudev: pyudev has no binding for it, and a program for each device would take milliseconds.
    """
    try:
        import ctypes  # in the child only

        libudev = ctypes.CDLL("libudev.so.1")
        for function in (
            "udev_new",
            "udev_hwdb_new",
            "udev_hwdb_get_properties_list_entry",
            "udev_list_entry_get_next",
        ):
            getattr(libudev, function).restype = ctypes.c_void_p
        for function in ("udev_list_entry_get_name", "udev_list_entry_get_value"):
            getattr(libudev, function).restype = ctypes.c_char_p
        database = libudev.udev_hwdb_new(ctypes.c_void_p(libudev.udev_new()))
    except (ImportError, MemoryError, OSError, AttributeError):
        return lambda _: ""

    def look_up(modalias: str) -> str:
        entry = database and libudev.udev_hwdb_get_properties_list_entry(
            ctypes.c_void_p(database), encode(modalias), ctypes.c_uint(0)
        )
        while entry:
            if libudev.udev_list_entry_get_name(ctypes.c_void_p(entry)) == b"ID_MODEL_FROM_DATABASE":
                return decode(libudev.udev_list_entry_get_value(ctypes.c_void_p(entry)) or b"")
            entry = libudev.udev_list_entry_get_next(ctypes.c_void_p(entry))
        return ""

    return look_up
