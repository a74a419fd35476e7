"""The control socket: Varlink interface `io.kmodd` on `/run/kmodd/io.kmodd`.

The `varlink` package, imported at the first call, validates calls and describes the interface. Its servers are not
used, as they have no limits and do not pass on the caller's credentials. Each call is returned as a `MethodCall` to the
daemon's event loop, which answers it at once or later.
"""

from __future__ import annotations

import os
import select
import socket
import struct

import kmodd
from kmodd.dataclass import dataclass, field, replace
from kmodd.host.paths import CONTROL_SOCKET
from kmodd.host.unix_listener import UnixListener
from kmodd.text import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    import varlink

MAX_CONNECTIONS = 64
MAX_OF_USERS = 48
"""Connections of all users; the others are for root, whatever the calls of users wait for."""
MAX_OF_USER = 16
"""Connections of one uid other than 0."""
MAX_FRAME = 64 * 1024
"""Bytes of one call, including its NUL."""
MAX_TEXT = 4096
"""Characters of one name or parameter, and of all names of one look-up; the longest modalias has a few hundred."""
MAX_NAMES = 64
"""Names of one look-up."""
MAX_OFFERS = 64
"""Descriptors that come with one call: as many as a module may have dependencies that are not root's."""
MAX_BEHIND = 256 * 1024
"""Bytes of a stream that its reader has not read, beside what the kernel keeps, after which it is disconnected."""
MAX_UNREAD = 4 * 1024 * 1024
"""Bytes of unread replies of all connections of a user, after which one is disconnected."""

_UCRED = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class StatusCall:
    """Report the state of the daemon."""


@dataclass(frozen=True, slots=True)
class ExplainCall:
    """Report the plan for a request of an operator."""

    request: str


@dataclass(frozen=True, slots=True)
class LookupCall:
    """Report the modules that match names."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LoadCall:
    """Load a module or alias for an operator."""

    request: str
    parameters: tuple[str, ...]
    files: tuple[str, ...] = ()
    """Module files that the caller has opened."""
    offers: tuple[int, ...] = ()
    """Descriptor of the offer of each file, which the receiver of the call closes."""


@dataclass(frozen=True, slots=True)
class UnloadCall:
    """Remove a module or alias for an operator."""

    request: str
    first_time: bool
    go_on: bool


@dataclass(frozen=True, slots=True)
class SettleCall:
    """Report when all events so far have been handled."""

    timeout_usec: int | None
    """µs; None: no timeout."""


@dataclass(frozen=True, slots=True)
class ReloadCall:
    """Reload indexes and configuration."""


@dataclass(frozen=True, slots=True)
class SealCall:
    """Seal, or remove the seal: refuse every request that no policy rule allows."""

    sealed: bool


@dataclass(frozen=True, slots=True)
class WaitCall:
    """Report when a module or a device has finished starting, or cannot any more; exactly one of both is set."""

    module: str | None
    """Name or alias."""
    device: str | None
    """`/devices/…` path."""
    timeout_usec: int | None
    """µs; None: no timeout."""


@dataclass(frozen=True, slots=True)
class MonitorCall:
    """Report decisions as they are recorded, until the caller disconnects."""


@dataclass(frozen=True, slots=True)
class LogLevelCall:
    """Set the least important level that is recorded."""

    level: int | None
    """As in syslog(3); None: that of kmodd.conf."""


MethodCall = (
    StatusCall
    | ExplainCall
    | LookupCall
    | LoadCall
    | UnloadCall
    | SettleCall
    | SealCall
    | ReloadCall
    | WaitCall
    | MonitorCall
    | LogLevelCall
)
_READING = (StatusCall, ExplainCall, LookupCall, SettleCall, WaitCall, MonitorCall)
"""Calls that have no effect but their reply."""
_OF_ROOT = (LoadCall, UnloadCall, SealCall, ReloadCall)
"""Calls that others may not make, as LogLevelCall."""


class _Called(Exception):
    """Carries a validated call out of the varlink package."""

    def __init__(self, call: MethodCall) -> None:
        self.call = call


class _Interface:
    """The methods of io.kmodd, which only raise the call. Names and parameters are those of the interface file."""

    def Status(self) -> None:
        raise _Called(StatusCall())

    def Explain(self, request: str) -> None:
        raise _Called(ExplainCall(request))

    def Lookup(self, names: list[str]) -> None:
        raise _Called(LookupCall(tuple(names)))

    def Load(self, request: str, parameters: list[str] | None, files: list[str] | None) -> None:
        raise _Called(LoadCall(request, tuple(parameters or ()), tuple(files or ())))

    def Unload(self, request: str, first_time: bool | None, go_on: bool | None) -> None:
        raise _Called(UnloadCall(request, bool(first_time), bool(go_on)))

    def Settle(self, timeout_usec: int | None) -> None:
        raise _Called(SettleCall(timeout_usec))

    def Wait(self, module: str | None, device: str | None, timeout_usec: int | None) -> None:
        raise _Called(WaitCall(module, device, timeout_usec))

    def Seal(self, sealed: bool) -> None:
        raise _Called(SealCall(sealed))

    def Reload(self) -> None:
        raise _Called(ReloadCall())

    def Monitor(self) -> None:
        raise _Called(MonitorCall())


class _Service:
    """The method of systemd's interface for services that kmodd has."""

    def SetLogLevel(self, level: int | None) -> None:
        raise _Called(LogLevelCall(level))


def _invalid_parameter(call: MethodCall, connection: Connection) -> str:
    """Return the name of the first invalid parameter of a call; empty if all are valid."""
    if isinstance(call, LoadCall) and connection.uid == 0 and len(call.files) not in (0, len(connection.offers)):
        return "files"
    if isinstance(call, SettleCall | WaitCall):
        usec = call.timeout_usec
        if usec is not None and not 0 <= usec < 2**63:
            return "timeout_usec"
    if isinstance(call, WaitCall):
        if bool(call.module) == bool(call.device):
            return "module"
        if call.device and not call.device.startswith("/devices/"):
            return "device"
        if call.module and call.module.startswith(("/", ".")):
            return "module"  # as for Explain
    if isinstance(call, LogLevelCall) and call.level is not None and not 0 <= call.level <= 7:
        return "level"
    if isinstance(call, ExplainCall) and call.request.startswith(("/", ".")):
        return "request"  # whether a file exists may be secret, and the look-up may block
    if isinstance(call, LookupCall):
        text = "".join(call.names[: MAX_NAMES + 1])
        is_valid = len(call.names) <= MAX_NAMES and len(text) <= MAX_TEXT and "\0" not in text and _encodes(text)
        return "" if is_valid else "names"
    texts = [getattr(call, "request", ""), getattr(call, "module", None) or "", getattr(call, "device", None) or ""]
    texts += [*getattr(call, "parameters", ()), *getattr(call, "files", ())]
    if any(len(text) > MAX_TEXT or "\0" in text or not _encodes(text) for text in texts):
        return "request"
    return ""


def _forbids(call: MethodCall, message: dict[str, Any], uid: int) -> str:
    """Return the error of a call that this user may not make, or not in this form; empty: it is permitted."""
    if isinstance(call, _OF_ROOT) and uid != 0:
        return "io.kmodd.NotPermitted"
    if isinstance(call, LogLevelCall) and uid != 0:
        return "org.varlink.service.PermissionDenied"  # as systemd's own services
    if isinstance(call, MonitorCall) and message.get("more") is not True:
        return "org.varlink.service.ExpectedMore"
    return ""


def _has_gone(caller: socket.socket) -> bool:
    """Return whether a caller that sends no more reads no more, either."""
    poll = select.poll()
    poll.register(caller, 0)
    return any(mask & select.POLLHUP for _, mask in poll.poll(0))


def _encodes(text: str) -> bool:
    try:
        encode(text)
    except UnicodeEncodeError:
        return False
    return True


@dataclass(slots=True, eq=False)
class Connection:
    """The connection of one caller."""

    socket: socket.socket
    uid: int
    """SO_PEERCRED, from when it connected."""
    offers: list[int] = field(default_factory=list)
    """Descriptors received with the bytes in `unread`; those of the first call, as more calls with some do not come."""
    unread: bytearray = field(default_factory=bytearray)
    """Received bytes: an incomplete frame, or calls after the one that is waiting."""
    searched: int = 0
    """Bytes of `unread` that are known to have no NUL."""
    turn: int = 0
    """Number of its last call; the one with the lowest number is the next to be served."""
    unsent: bytes = b""
    """Bytes of replies that the caller has not read."""
    waiting: bool = False
    """A call waits for the daemon's reply; Varlink calls are answered in order."""
    streaming: bool = False
    """That call is a `Monitor`, which has a reply for each record."""
    oneway: bool = False
    """That call has no reply."""
    ended: bool = False
    """The caller has shut down its sending side; replies are still sent."""

    def fileno(self) -> int:
        """Return the descriptor of the connection."""
        return self.socket.fileno()

    def has_frame(self) -> bool:
        """Return whether a whole frame has been received; each byte is searched once."""
        end = self.unread.find(0, self.searched)
        self.searched = len(self.unread) if end < 0 else end
        return end >= 0

    def pop_frame(self) -> bytes:
        """Take the first frame, which `has_frame` has found, and return it without its NUL."""
        frame = bytes(self.unread[: self.searched])
        del self.unread[: self.searched + 1]
        self.searched = 0
        return frame

    def close_offers(self) -> None:
        """Close the descriptors that no call has taken."""
        while self.offers:
            os.close(self.offers.pop())


class ControlSocket:
    """Listens, receives calls and sends replies, without blocking."""

    def __init__(self, path: str = CONTROL_SOCKET) -> None:
        """Listen at `path`, replacing a socket without a listener. Raises OSError; EADDRINUSE if it has one."""
        self._listening = UnixListener(path, socket.SOCK_STREAM, 0o666, MAX_CONNECTIONS)
        self.path = path
        self._service: varlink.Service | None = None
        self.connections: list[Connection] = []
        self._calls = 0
        self.dropped = 0
        """Callers that were disconnected because they did not read."""

    def fileno(self) -> int:
        """Return the descriptor, readable when a caller connects."""
        return self._listening.socket.fileno()

    def accept(self) -> None:
        """Accept new connections up to the limits: of one user, of all users, and of all."""
        for _ in range(MAX_CONNECTIONS):
            accepted = self._listening.accept()
            if accepted is None:
                return
            accepted.setblocking(False)
            credentials = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            connection = Connection(accepted, _UCRED.unpack(credentials)[1])
            if self._has_place(connection.uid):
                self.connections.append(connection)
            else:
                accepted.close()

    def _has_place(self, uid: int) -> bool:
        """Return whether a user may have one more connection."""
        if len(self.connections) >= MAX_CONNECTIONS:
            return False
        of_users = [other.uid for other in self.connections if other.uid != 0]
        return uid == 0 or (len(of_users) < MAX_OF_USERS and of_users.count(uid) < MAX_OF_USER)

    def receive(self, connection: Connection) -> None:
        """Read from a caller, for `next_call`; drop the connection if it has ended or exceeds the limit."""
        try:
            if connection.uid == 0:
                data, offers, _, _ = socket.recv_fds(connection.socket, MAX_FRAME, MAX_OFFERS, socket.MSG_CMSG_CLOEXEC)
                connection.offers += offers
            else:
                data = connection.socket.recv(MAX_FRAME)  # the kernel closes what came with it
        except BlockingIOError:
            return
        except OSError:
            data = b""
        connection.unread += data
        connection.ended = not data
        is_too_long = not connection.has_frame() and len(connection.unread) >= MAX_FRAME
        too_much = is_too_long or len(connection.unread) > 2 * MAX_FRAME or len(connection.offers) > MAX_OFFERS
        is_over = connection.ended and (not self._is_pending(connection) or _has_gone(connection.socket))
        if too_much or is_over or (connection.ended and connection.streaming):
            self.drop(connection)

    @staticmethod
    def _is_pending(connection: Connection) -> bool:
        """Return whether a call or reply of this caller is pending."""
        return connection.waiting or bool(connection.unsent) or connection.has_frame()

    def ready(self) -> list[Connection]:
        """Return the connections that have a call for `next_call`: those of root, then the others in turn."""
        ready = [c for c in self.connections if not c.waiting and not c.unsent and c.has_frame()]
        return sorted(ready, key=lambda connection: (connection.uid != 0, connection.turn))

    def next_call(self, connection: Connection) -> MethodCall | None:
        """Take one frame of a connection and return its call; None if it has none, or its call is answered already.

        The call is to be answered with `answer` or `refuse`, at once or later. An empty or invalid frame ends the
        connection.
        """
        if connection.waiting or connection.unsent or not connection.has_frame():
            return None
        self._calls += 1
        connection.turn = self._calls
        frame = connection.pop_frame()
        if not frame or len(frame) >= MAX_FRAME:
            self.drop(connection)
            return None
        call = self._parse(connection, frame)
        if isinstance(call, LoadCall) and call.files:
            call, connection.offers = replace(call, offers=tuple(connection.offers)), []
        connection.close_offers()
        connection.waiting = call is not None
        if call is None and connection.ended and not self._is_pending(connection):
            self.drop(connection)
        return call

    def _parse(self, connection: Connection, frame: bytes) -> MethodCall | None:
        """Return the call in one frame, validated by the varlink package; None if it has been answered here.

        Answered at once are the package's own methods (GetInfo, GetInterfaceDescription) and errors.
        """
        try:
            for reply in self.load_package().handle(frame):
                self._send(connection, reply + b"\0")
        except _Called as called:
            import json  # here: boot must not wait for the import

            message = json.loads(frame)
            connection.oneway = message.get("oneway") is True
            if connection.oneway and isinstance(called.call, _READING):
                return None  # it would have no effect
            if name := _invalid_parameter(called.call, connection):
                refusal = {"error": "org.varlink.service.InvalidParameter", "parameters": {"parameter": name}}
                self._reply(connection, refusal)
                return None
            if error := _forbids(called.call, message, connection.uid):
                self._reply(connection, {"error": error, "parameters": {}})
                return None
            return called.call
        except Exception:  # not JSON, or of a form that the package does not handle
            self.drop(connection)
        return None

    def load_package(self) -> varlink.Service:
        """Import the package at the first call, and return its service."""
        if self._service is None:
            import varlink

            folder = os.path.dirname(os.path.abspath(__file__))
            service = varlink.Service("kmodd", "kmodd", kmodd.__version__, "", interface_dir=folder)
            service.interface("io.kmodd")(_Interface)
            service.interface("io.systemd.service")(_Service)
            self._service = service
        return self._service

    def answer(self, connection: Connection, parameters: dict[str, Any]) -> None:
        """Reply to the pending call with its result."""
        self._end_call(connection, {"parameters": parameters})

    def begin_stream(self, connection: Connection) -> None:
        """Have the pending call get replies from `stream` until its caller disconnects."""
        connection.streaming = True

    def stream(self, connection: Connection, reply: bytes) -> None:
        """Send one of many replies; disconnect a caller that has not read MAX_BEHIND bytes of them."""
        self._send(connection, reply)
        if len(connection.unsent) > MAX_BEHIND and connection in self.connections:
            self.dropped += 1
            self.drop(connection)

    def refuse(self, connection: Connection, error: str, parameters: dict[str, Any]) -> None:
        """Reply to the pending call with an error of the interface, named without `io.kmodd.`."""
        self._end_call(connection, {"error": f"io.kmodd.{error}", "parameters": parameters})

    def _end_call(self, connection: Connection, reply: dict[str, Any]) -> None:
        connection.waiting = False
        self._reply(connection, reply)
        if connection.oneway and connection.ended:
            self.drop(connection)

    def _reply(self, connection: Connection, reply: dict[str, Any]) -> None:
        import json

        if not connection.oneway:
            self._send(connection, json.dumps(reply).encode() + b"\0")

    def _send(self, connection: Connection, data: bytes) -> None:
        connection.unsent += data
        self.send_rest(connection)

    def send_rest(self, connection: Connection) -> None:
        """Send as much of the pending replies as fits; drop a caller that does not read them."""
        try:
            sent = connection.socket.send(connection.unsent)
            connection.unsent = connection.unsent[sent:]
        except BlockingIOError:
            pass
        except OSError:
            self.drop(connection)
        done = connection.ended and not self._is_pending(connection)
        unsent = sum(len(other.unsent) for other in self.connections if other.uid == connection.uid)
        if unsent > MAX_UNREAD:
            self.dropped += 1
        if done or unsent > MAX_UNREAD:
            self.drop(connection)

    def drop(self, connection: Connection) -> None:
        """Close a connection."""
        if connection in self.connections:
            self.connections.remove(connection)
        connection.close_offers()
        connection.socket.close()

    def close(self) -> None:
        """Stop listening and close all connections."""
        self._listening.close()
        for connection in list(self.connections):
            self.drop(connection)
