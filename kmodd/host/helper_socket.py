"""The socket `/run/kmodd/request`, on which the kernel's modprobe helper requests a module.

SOCK_SEQPACKET. The helper (helper/kmodd-request.c, `cli/request.py`) sends one datagram, the name, and receives two:
`a` at once (accepted; from then on it waits without a timeout), then `0` (loaded, or was already) or `1` (unknown,
refused or failed), which becomes its exit status. On anything else the helper proceeds without the daemon.

For a process of root that has called it as `modprobe [-q] [-a] NAME…`, the helper in C sends a NUL, the letters of the
options, and before each name a NUL; the kernel's names have none. It receives `a`, any number of datagrams of `e` and
bytes for standard error, then `x0` or `x1`, its exit status. On anything else it becomes the real modprobe.
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

MAX_CALLS = 64
"""Calls of processes at a time, beside the kernel's requests."""
MAX_CALL = 4096
"""Bytes of a call, as in helper/kmodd-request.c; the longest modalias has a few hundred."""
_MAX_TEXT = 4095
"""Bytes for standard error in one datagram."""

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


@dataclass(slots=True, eq=False)
class ModprobeCall:
    """A call of modprobe by a process of root; to be answered with `RequestSocket.reply`."""

    names: tuple[str, ...]
    """At least one; none is empty."""
    is_quiet: bool
    """`-q`."""
    is_all: bool
    """`-a`; there is only one name without it."""
    connection: socket.socket


def _call_of(data: bytes, connection: socket.socket) -> ModprobeCall | None:
    """Return the call of a datagram; None: it is none."""
    start, _, rest = data.partition(b"\0")
    letters, *names = rest.split(b"\0")
    is_quiet, is_all = b"q" in letters, b"a" in letters
    if start or len(data) > MAX_CALL or not names or not all(names) or (len(names) > 1 and not is_all):
        return None
    return ModprobeCall(tuple(map(decode, names)), is_quiet, is_all, connection)


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
        self._calls: dict[int, ModprobeCall] = {}
        """Accepted calls of processes without an answer, by descriptor."""
        self._new_calls: list[ModprobeCall] = []

    def fileno(self) -> int:
        """Return an epoll descriptor, readable when a helper connects, sends its name or disconnects."""
        return self._epoll.fileno()

    @property
    def waiting(self) -> tuple[KernelRequest, ...]:
        """Accepted requests without an answer, in the order of arrival."""
        return tuple(self._waiting.values())

    def receive(self) -> list[KernelRequest]:
        """Accept connections, confirm each name to its helper, and return the new requests in order.

        Also detects helpers that have ended, for `gone`, and accepts calls of processes, for `pop_call`.
        """
        received: list[KernelRequest] = []
        is_connecting = False
        for number, _ in self._epoll.poll(0):
            if number in self._silent:
                self._read(number, received)
            elif number in self._waiting or number in self._calls:
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
            data = connection.recv(MAX_CALL + 1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        del self._silent[number]
        call = _call_of(data, connection)
        if not data or (call and len(self._calls) >= MAX_CALLS) or not _send(connection, b"a"):
            connection.close()
            return
        if call:
            self._calls[number] = call
            self._new_calls.append(call)
            return
        request = KernelRequest(decode(data), pid, time.monotonic_ns(), connection)
        self._waiting[number] = request
        if len(data) > MAX_NAME or b"\0" in data:  # not a module's name
            self.answer(request, False)
        else:
            received.append(request)

    def _check_end(self, number: int) -> None:
        """Drop a request whose helper has ended: a waiting helper sends nothing, so only the end is readable."""
        waiting = self._waiting.get(number) or self._calls[number]
        try:
            waiting.connection.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            pass
        waiting.connection.close()
        if request := self._waiting.pop(number, None):
            self._gone.append(request)
        else:
            del self._calls[number]

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

    @property
    def has_calls(self) -> bool:
        """Whether `pop_call` returns a call."""
        return bool(self._new_calls)

    def pop_call(self) -> ModprobeCall | None:
        """Return the next accepted call of a process that has not been returned; None if there is none."""
        return self._new_calls.pop(0) if self._new_calls else None

    def is_waiting(self, call: ModprobeCall) -> bool:
        """Return whether a call is unanswered and its helper has not ended."""
        return self._calls.get(call.connection.fileno()) is call

    def reply(self, call: ModprobeCall, status: int, text: bytes) -> None:
        """Send an exit status, 0 or 1, and the text for standard error. Does nothing if the helper has ended."""
        if self.is_waiting(call):
            del self._calls[call.connection.fileno()]
            for start in range(0, len(text), _MAX_TEXT):
                _send(call.connection, b"e" + text[start : start + _MAX_TEXT])
            _send(call.connection, b"x%d" % status)
            call.connection.close()

    def leave(self, call: ModprobeCall) -> None:
        """Close the connection of a call unanswered: its helper becomes the real modprobe."""
        if self.is_waiting(call):
            del self._calls[call.connection.fileno()]
            call.connection.close()

    def close(self) -> None:
        """Stop listening. Helpers that wait proceed without the daemon."""
        self._listening.close()
        connections = [silent for silent, _ in self._silent.values()]
        connections += [request.connection for request in self.waiting]
        connections += [call.connection for call in self._calls.values()]
        for connection in connections:
            connection.close()
        self._silent.clear()
        self._waiting.clear()
        self._calls.clear()
        self._new_calls.clear()
        self._epoll.close()


def _send(connection: socket.socket, data: bytes) -> bool:
    """Send to a helper; return False if it has ended."""
    try:
        connection.send(data, socket.MSG_DONTWAIT)
    except OSError:
        return False
    return True
