"""Where events come from: the kernel's netlink group, and sysfs for what was there before us.

A socket of our own, not pyudev's monitor: importing pyudev is an eighth of a start, its `Monitor.poll` costs four times
as much an event and never recovers from an overflow (pyudev issue 194); `recvmsg` gives the sender's credentials and an
errno that clears itself.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from kmodd.dataclass import dataclass
from kmodd.errors import ParseError
from kmodd.kernel import uevent
from kmodd.kernel.uevent import Uevent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

RECEIVE_BUFFER = 128 * 1024 * 1024
"""Bytes, as udevd asks for: room for 100,000 events and more. The kernel doubles it."""

_NETLINK_KOBJECT_UEVENT = 15
"""include/uapi/linux/netlink.h; the socket module has no name for it, nor for the next."""
_SO_RCVBUFFORCE = 33
"""include/uapi/asm-generic/socket.h: the same on all machines that `loader/syscalls.py` knows."""
_FROM_KERNEL = 1
"""The group to which the kernel sends; udevd sends to 2."""

_DATAGRAM = 16384
"""Bytes. A uevent has at most 2,048 of variables and its path (include/linux/kobject.h)."""

_ATTRIBUTE = 65536
"""Bytes. A file of sysfs has at most a page, and is given whole (Documentation/filesystems/sysfs.rst)."""

_UCRED = struct.Struct("3i")
_ANCILLARY = socket.CMSG_SPACE(_UCRED.size)

SPOKEN_TO = ("auxiliary", "cxl", "dfl", "mdio_bus", "memstick", "mmc", "tifm")
"""Buses whose devices have no `modalias` file and yet say one, or match a rule, in their `add` event.

They are made to speak by writing `add`: reading a `uevent` file would take the device's lock and hang, unkillably,
behind a slow or crashed probe. Every other bus is only read, because each `add` also makes udevd do all its rules.
"""


@dataclass(frozen=True, slots=True)
class Overrun:
    """The kernel dropped events because our buffer was full; which ones nobody knows."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A datagram that is not believed, and why."""

    why: str


Received = Uevent | Overrun | Refused


class KernelEvents:
    """The kernel's uevent group, open from construction on."""

    def __init__(self, buffer_bytes: int = RECEIVE_BUFFER) -> None:
        """Join the group; `buffer_bytes` is forced with CAP_NET_ADMIN, else what the system allows.

        Raises OSError where netlink is not to be had.
        """
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, _NETLINK_KOBJECT_UEVENT)
        self.buffer_forced = True
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
        except OSError:
            self.buffer_forced = False
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        try:
            self._socket.bind((0, _FROM_KERNEL))
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """For select."""
        return self._socket.fileno()

    def receive(self, limit: int) -> Iterator[Received]:
        """Up to `limit` things that wait in the socket, one by one, so that a flood of them takes no memory.

        Fewer: it is empty now.
        """
        for _ in range(limit):
            try:
                datagram, ancillary, flags, sender = self._socket.recvmsg(_DATAGRAM, _ANCILLARY)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                yield Overrun()
                continue
            why = _not_the_kernels(sender, ancillary, flags)
            if why:
                yield Refused(why)
                continue
            try:
                yield uevent.parse(datagram)
            except ParseError as bad:
                yield Refused(str(bad))

    def close(self) -> None:
        """Leave the group."""
        self._socket.close()


def _not_the_kernels(sender: tuple[int, int], ancillary: list[tuple[int, int, bytes]], flags: int) -> str:
    """Why a datagram is not to be believed; empty: it is the kernel's.

    Port 0 is the kernel's own, but in a container the kernel re-sends what a container's root wrote with port 0
    and the writer's credentials: so both are asked for (lib/kobject_uevent.c, uevent_net_rcv_skb).
    """
    if flags & socket.MSG_TRUNC:
        return f"datagram of more than {_DATAGRAM} bytes"
    port, groups = sender
    if port != 0 or groups != 1:
        return f"sent by netlink port {port} to group {groups}; expected the kernel, port 0, group 1"
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS and len(data) >= _UCRED.size:
            _pid, uid, _gid = _UCRED.unpack(data[: _UCRED.size])
            return "" if uid == 0 else f"sent by uid {uid}; expected the kernel"
    return "no sender's credentials with it"


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
        found = tuple(alias for alias in text.decode("utf-8", "surrogateescape").split("\n") if alias)
        if found:
            properties = tuple(("MODALIAS", alias) for alias in found)
            yield Uevent("add", devpath, subsystem, found, 0, synthetic=True, properties=properties)


def speak(root: str, uuid: str) -> list[OSError]:
    """Write `add` to the devices of SPOKEN_TO, and to parport_pc, whose module is a rule of its own.

    Their events come in through the kernel's group like any other, with `uuid` as SYNTH_UUID. The answer is what went
    wrong, but not that a device went away meanwhile.
    """
    errors = []
    talkers = {_devpath(path, f"{root}/sys") for path, _ in _links(f"{root}/sys", SPOKEN_TO)}
    for devpath in [*sorted(talkers - {""}), "/module/parport_pc"]:
        try:
            fd = os.open(f"{root}/sys{devpath}/uevent", os.O_WRONLY | os.O_CLOEXEC)
            try:
                _say_add(fd, uuid)
            finally:
                os.close(fd)
        except FileNotFoundError:
            continue
        except OSError as error:
            errors.append(error)
    return errors


def _say_add(fd: int, uuid: str) -> None:
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
