"""The socket `/run/kmodd/request`, on which the kernel's modprobe helper requests a module.

SOCK_SEQPACKET. The helper (helper/kmodd-request.c, `cli/request.py`) sends one datagram, the name, and receives two:
`a` at once (accepted; from then on it waits without a timeout), then `0` (loaded, or was already) or `1` (unknown,
refused or failed), which becomes its exit status. On anything else the helper proceeds without the daemon.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time

from kmodd.dataclass import dataclass
from kmodd.host.unix_listener import UnixListener
from kmodd.text import decode

REQUEST_SOCKET = "/run/kmodd/request"
HELPER = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "kmodd-request")
"""The helper of this installation."""
SETTING = "/proc/sys/kernel/modprobe"
"""kernel.modprobe, the program that the kernel executes (Documentation/admin-guide/sysctl/kernel.rst)."""
MAX_CONNECTIONS = 256
"""The kernel runs 50 helpers at a time (MAX_KMOD_CONCURRENT), besides those whose requester was killed."""
MAX_NAME = 255
"""Bytes; names from the kernel have at most 55 (MODULE_NAME_LEN)."""
NAME_TIMEOUT = 0.005
"""Seconds to wait for the name on a new connection, which the helper's next system call sends. Its connect() wakes the
daemon, often on the same processor; a whole round of the event loop would only delay the name.
"""

_UCRED = struct.Struct("3i")


@dataclass(slots=True, eq=False)
class KernelRequest:
    """A name that the kernel requests; to be answered with `RequestSocket.answer`."""

    name: str
    """Contains any bytes (surrogate escapes), as users choose parts of it, such as a file system's type."""
    helper_pid: int
    """SO_PEERCRED, from when it connected."""
    arrived_ns: int
    """When it was read (time.monotonic_ns)."""
    connection: socket.socket


def is_helper_set() -> bool:
    """Return whether the kernel executes the helper of this installation, also by another name of the file.

    The package puts a link to it in the place of /sbin/modprobe; systemd/kernel-helper sets its path.
    """
    try:
        with open(SETTING, "rb") as file:
            return os.path.samefile(file.read().rstrip(b"\n"), HELPER)
    except (OSError, ValueError):  # ValueError: a NUL in the setting
        return False


class RequestSocket:
    """Listens, receives names and answers them, with one descriptor for the event loop.

    Blocks only for the name on a new connection, for at most NAME_TIMEOUT.
    """

    def __init__(self, path: str = REQUEST_SOCKET) -> None:
        """Listen at `path`, replacing a socket without a listener. Raises OSError; EADDRINUSE if it has one."""
        self.path = path
        self._listening = UnixListener(path, socket.SOCK_SEQPACKET, 0o600, MAX_CONNECTIONS)
        self._uid = os.geteuid()
        self._epoll = select.epoll()
        self._epoll.register(self._listening.socket.fileno(), select.EPOLLIN)
        self._silent: dict[int, tuple[socket.socket, int]] = {}
        """Connections without a name yet, and their helper's pid, by descriptor."""
        self._waiting: dict[int, KernelRequest] = {}
        self._gone: list[KernelRequest] = []

    def fileno(self) -> int:
        """Return an epoll descriptor, readable when a helper connects, sends its name or disconnects."""
        return self._epoll.fileno()

    @property
    def waiting(self) -> tuple[KernelRequest, ...]:
        """Accepted requests without an answer, in the order of arrival."""
        return tuple(self._waiting.values())

    def receive(self) -> list[KernelRequest]:
        """Accept connections, confirm each name to its helper, and return the new requests in order.

        Also detects helpers that have ended, for `gone`.
        """
        received: list[KernelRequest] = []
        is_connecting = False
        for number, _ in self._epoll.poll(0):
            if number in self._silent:
                self._read(number, received)
            elif number in self._waiting:
                self._check_end(number)
            else:
                is_connecting = True
        if is_connecting:  # last: a new connection may get the number of one that was closed above
            self._accept(received)
        return received

    def _accept(self, received: list[KernelRequest]) -> None:
        """Accept new connections of root, and wait a moment for their names."""
        new = set[int]()
        for _ in range(MAX_CONNECTIONS):
            connection = self._listening.accept()
            if connection is None:
                break
            pid, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            # The kernel's helper runs as root, as the daemon does. Beyond the limit it proceeds without the daemon.
            if uid != self._uid or len(self._silent) + len(self._waiting) >= MAX_CONNECTIONS:
                connection.close()
                continue
            number = connection.fileno()
            self._silent[number] = (connection, pid)
            self._epoll.register(number, select.EPOLLIN)
            self._read(number, received)
            new.add(number)
        if not new.isdisjoint(self._silent):  # connections from earlier calls are not waited for
            for number, _ in self._epoll.poll(NAME_TIMEOUT):
                if number in self._silent:
                    self._read(number, received)

    def _read(self, number: int, received: list[KernelRequest]) -> None:
        """Read the name from a connection that has none yet, if it has arrived, and confirm it."""
        connection, pid = self._silent[number]
        try:
            data = connection.recv(MAX_NAME + 1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        del self._silent[number]
        if not data or not _send(connection, b"a"):
            connection.close()
            return
        request = KernelRequest(decode(data), pid, time.monotonic_ns(), connection)
        self._waiting[number] = request
        if len(data) > MAX_NAME or b"\0" in data:  # not a module's name
            self.answer(request, False)
        else:
            received.append(request)

    def _check_end(self, number: int) -> None:
        """Drop a request whose helper has ended: a waiting helper sends nothing, so only the end is readable."""
        request = self._waiting[number]
        try:
            request.connection.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            pass
        del self._waiting[number]
        request.connection.close()
        self._gone.append(request)

    def gone(self) -> list[KernelRequest]:
        """Return the requests, no longer `waiting`, whose helper has ended before its answer since the last call."""
        gone, self._gone = self._gone, []
        return gone

    def answer(self, request: KernelRequest, found: bool) -> None:
        """Send the outcome, `found` if the module is loaded. Does nothing if the helper has ended."""
        if self._waiting.pop(request.connection.fileno(), None) is request:
            _send(request.connection, b"0" if found else b"1")
            request.connection.close()

    def turn_away(self, request: KernelRequest) -> None:
        """Close the connection unanswered: the helper proceeds without the daemon, or refuses, as policy requires."""
        if self._waiting.pop(request.connection.fileno(), None) is request:
            request.connection.close()

    def close(self) -> None:
        """Stop listening. Helpers that wait proceed without the daemon."""
        self._listening.close()
        for connection in [*(silent for silent, _ in self._silent.values()), *(r.connection for r in self.waiting)]:
            connection.close()
        self._silent.clear()
        self._waiting.clear()
        self._epoll.close()


def _send(connection: socket.socket, data: bytes) -> bool:
    """Send to a helper; return False if it has ended."""
    try:
        connection.send(data, socket.MSG_DONTWAIT)
    except OSError:
        return False
    return True
