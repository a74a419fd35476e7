"""The socket on which the kernel's helper hands over what the kernel asks for: `/run/kmodd/request`.

SOCK_SEQPACKET; the helper (helper/kmodd-request.c, `cli/request.py`) sends one datagram, the name, and gets two:
`a` at once (accepted: from then on it waits without limit), then `0` (loaded or there already) or `1` (unknown,
refused or failed), which becomes its exit status. A helper that gets anything else does without the daemon.
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
HELPER_IS_SET = "/run/kmodd/kernel.modprobe"
"""What was there before our helper, kept by systemd/kernel-helper for as long as the kernel calls ours."""
MAX_CONNECTIONS = 256
"""The kernel runs 50 helpers that are waited for (MAX_KMOD_CONCURRENT), and others whose requester was killed."""
MAX_NAME = 255
"""Bytes; the kernel's own names have 55 at the most (MODULE_NAME_LEN)."""
NAME_COMES = 0.005
"""Seconds that a new connection is waited on for its name, which is the helper's next system call. Its connect() wakes
us, often on its own processor and in its stead: going round the whole loop meanwhile would only keep the name away.
"""

_UCRED = struct.Struct("3i")


@dataclass(slots=True, eq=False)
class KernelRequest:
    """A name that the kernel asks for: `RequestSocket.answer` it."""

    name: str
    """Not UTF-8: as surrogate escapes. Users choose parts of it (a file system's type), so any byte may stand here."""
    helper_pid: int
    """By SO_PEERCRED, of the moment it connected."""
    arrived_ns: int
    """When it was read: time.monotonic_ns."""
    connection: socket.socket


class RequestSocket:
    """Listens, accepts names, answers them. One descriptor wakes the loop for all that may happen here.

    It waits for nothing but a name that is as good as there (`NAME_COMES`).
    """

    def __init__(self, path: str = REQUEST_SOCKET) -> None:
        """Listen at `path`, in the place of a socket that nobody serves any more.

        Raises OSError; EADDRINUSE where somebody does.
        """
        self.path = path
        self._listening = UnixListener(path, socket.SOCK_SEQPACKET, 0o600, MAX_CONNECTIONS)
        self._uid = os.geteuid()
        self._epoll = select.epoll()
        self._epoll.register(self._listening.socket.fileno(), select.EPOLLIN)
        self._silent: dict[int, tuple[socket.socket, int]] = {}
        """By descriptor: connections without a name yet, and their helper's pid."""
        self._waiting: dict[int, KernelRequest] = {}
        self._gone: list[KernelRequest] = []

    def fileno(self) -> int:
        """For select: readable when somebody connects, sends or goes; an epoll descriptor with all of them in it."""
        return self._epoll.fileno()

    @property
    def waiting(self) -> tuple[KernelRequest, ...]:
        """What was accepted and is not answered, in the order of arrival."""
        return tuple(self._waiting.values())

    def receive(self) -> list[KernelRequest]:
        """Let in who waits at the door, tell each helper that its name is accepted, and hand the names out, in order.

        Also notices who has gone: see `gone`.
        """
        came: list[KernelRequest] = []
        knocked = False
        for number, _ in self._epoll.poll(0):
            if number in self._silent:
                self._read(number, came)
            elif number in self._waiting:
                self._look_after(number)
            else:
                knocked = True
        if knocked:  # last: a new connection may get the number of one that was closed above
            self._accept(came)
        return came

    def _accept(self, came: list[KernelRequest]) -> None:
        new = set[int]()
        for _ in range(MAX_CONNECTIONS):
            connection = self._listening.accept()
            if connection is None:
                break
            pid, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            # The kernel's helper is root, as the daemon is. One too many is sent away, so that it does without us.
            if uid != self._uid or len(self._silent) + len(self._waiting) >= MAX_CONNECTIONS:
                connection.close()
                continue
            number = connection.fileno()
            self._silent[number] = (connection, pid)
            self._epoll.register(number, select.EPOLLIN)
            self._read(number, came)
            new.add(number)
        if not new.isdisjoint(self._silent):  # who has been silent for longer is not waited for
            for number, _ in self._epoll.poll(NAME_COMES):
                if number in self._silent:
                    self._read(number, came)

    def _read(self, number: int, came: list[KernelRequest]) -> None:
        """Take the name from a connection that had none, if it has come, and accept it."""
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
        if len(data) > MAX_NAME or b"\0" in data:  # no module is called so
            self.answer(request, False)
        else:
            came.append(request)

    def _look_after(self, number: int) -> None:
        """A helper that waits says nothing more: what is to be read is its end."""
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
        """Whose helper has ended without an answer, since the last call: they are not `waiting` any more."""
        gone, self._gone = self._gone, []
        return gone

    def answer(self, request: KernelRequest, found: bool) -> None:
        """Tell the outcome: `found`, it is loaded or there already. Does nothing where the helper has gone."""
        if self._waiting.pop(request.connection.fileno(), None) is request:
            _send(request.connection, b"0" if found else b"1")
            request.connection.close()

    def turn_away(self, request: KernelRequest) -> None:
        """Nothing can be done for it here: its helper does without us, or refuses, as policy has it."""
        if self._waiting.pop(request.connection.fileno(), None) is request:
            request.connection.close()

    def close(self) -> None:
        """Stop listening. Who waits does without us."""
        self._listening.close()
        for connection in [*(silent for silent, _ in self._silent.values()), *(r.connection for r in self.waiting)]:
            connection.close()
        self._silent.clear()
        self._waiting.clear()
        self._epoll.close()


def _send(connection: socket.socket, data: bytes) -> bool:
    """Whether the helper is there to get it."""
    try:
        connection.send(data, socket.MSG_DONTWAIT)
    except OSError:
        return False
    return True
