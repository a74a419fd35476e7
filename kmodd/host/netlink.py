"""Receive the kernel's uevents from its netlink multicast group.

Uses the socket module, not pyudev's monitor: importing pyudev takes an eighth of the start, its `Monitor.poll` takes
four times as long for an event and does not recover from an overflow (pyudev issue 194). `recvmsg` gives the sender's
credentials, and ENOBUFS once for each overflow.
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
"""Bytes, the same as udevd's: room for more than 100,000 uevents. The kernel doubles it (socket(7))."""

_NETLINK_KOBJECT_UEVENT = 15
"""include/uapi/linux/netlink.h; the socket module lacks this and the next constant."""
_SO_RCVBUFFORCE = 33
"""include/uapi/asm-generic/socket.h; the same on all machine types of `loader/syscalls.py`."""
_FROM_KERNEL = 1
"""Multicast group of the kernel; udevd sends to group 2."""

_DATAGRAM = 16384
"""Bytes. A uevent has at most 2,048 bytes of variables, and its path (include/linux/kobject.h)."""

_UCRED = struct.Struct("3i")
_ANCILLARY = socket.CMSG_SPACE(_UCRED.size)


@dataclass(frozen=True, slots=True)
class Overrun:
    """The receive buffer was full, so the kernel dropped uevents; it does not tell which (ENOBUFS in netlink(7))."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A datagram that is not a valid uevent of the kernel."""

    why: str
    """The reason, for a message."""


Received = Uevent | Overrun | Refused


class KernelEvents:
    """A socket in the kernel's uevent group."""

    def __init__(self, buffer_bytes: int = RECEIVE_BUFFER) -> None:
        """Join the group with a receive buffer of `buffer_bytes`, without CAP_NET_ADMIN at most net.core.rmem_max.

        Raises OSError if there is no such socket.
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
        """Return the descriptor, readable when a uevent has arrived."""
        return self._socket.fileno()

    def receive(self, limit: int) -> Iterator[Received]:
        """Yield up to `limit` uevents and errors from the socket; fewer if it is empty. A flood takes no memory.

        Raises OSError for an error other than an overflow.
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
            why = _untrusted(sender, ancillary, flags)
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


def _untrusted(sender: tuple[int, int], ancillary: list[tuple[int, int, bytes]], flags: int) -> str:
    """Return why a datagram is not accepted as the kernel's; empty if it is.

    Checks both the port and the credentials: the kernel sends from port 0, but so it forwards what root of a container
    has sent, with the credentials of that sender (lib/kobject_uevent.c, uevent_net_rcv_skb).
    """
    if flags & socket.MSG_TRUNC:
        return f"datagram longer than {_DATAGRAM} bytes"
    port, groups = sender
    if port != 0 or groups != 1:
        return f"sent by netlink port {port} to group {groups}; expected the kernel, port 0, group 1"
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS and len(data) >= _UCRED.size:
            _pid, uid, _gid = _UCRED.unpack(data[: _UCRED.size])
            return "" if uid == 0 else f"sent by uid {uid}; expected the kernel"
    return "sent without credentials"
