"""Where events come from: the kernel's netlink group, and sysfs for what was there before us.

A socket of our own, not pyudev's monitor: importing pyudev is an eighth of a start, its `Monitor.poll` costs four times
as much an event and never recovers from an overflow (pyudev issue 194); `recvmsg` gives the sender's credentials and an
errno that clears itself.
"""

from __future__ import annotations

import errno
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

_UCRED = struct.Struct("3i")
_ANCILLARY = socket.CMSG_SPACE(_UCRED.size)


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
