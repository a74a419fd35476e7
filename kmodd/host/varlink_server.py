"""The control socket: Varlink `io.kmodd` on `/run/kmodd/io.kmodd`.

Frames are checked and described by the `varlink` package, which is imported at the first connection. Its own
servers are not used: they know neither the caller's credentials nor a limit. A call becomes a `MethodCall` that is
returned to the daemon's loop, which answers it at once or later; nothing here knows the daemon.
"""

from __future__ import annotations

import os
import socket
import struct

import kmodd
from kmodd.dataclass import dataclass
from kmodd.host.paths import CONTROL_SOCKET
from kmodd.host.unix_listener import UnixListener
from kmodd.text import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    import varlink

MAX_CONNECTIONS = 64
MAX_FRAME = 64 * 1024
"""Bytes of one call, its NUL included."""
MAX_TEXT = 4096
"""Characters of one name or parameter; the longest modalias has some hundred."""
MAX_UNREAD = 4 * 1024 * 1024
"""Bytes of answers that a caller may leave unread before it is cut off."""

_UCRED = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class StatusCall:
    """What the daemon does now."""


@dataclass(frozen=True, slots=True)
class ExplainCall:
    """The plan for a request, as an operator's."""

    request: str


@dataclass(frozen=True, slots=True)
class LoadCall:
    """Load as an operator."""

    request: str
    parameters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UnloadCall:
    """Remove as an operator."""

    request: str
    first_time: bool
    go_on: bool


@dataclass(frozen=True, slots=True)
class SettleCall:
    """Be told when all events so far are answered; None: wait for ever."""

    timeout_usec: int | None


@dataclass(frozen=True, slots=True)
class ReloadCall:
    """Read indexes and configuration again."""


@dataclass(frozen=True, slots=True)
class SealCall:
    """Refuse what no rule allows; or no longer."""

    sealed: bool


MethodCall = StatusCall | ExplainCall | LoadCall | UnloadCall | SettleCall | SealCall | ReloadCall


class _Called(Exception):
    """Carries a wish out of the varlink package, which has checked the call by then."""

    def __init__(self, call: MethodCall) -> None:
        self.call = call


class _Interface:
    """The methods of io.kmodd: each only says what is wished. Names are the interface file's."""

    def Status(self) -> None:
        raise _Called(StatusCall())

    def Explain(self, request: str) -> None:
        raise _Called(ExplainCall(request))

    def Load(self, request: str, parameters: list[str] | None) -> None:
        raise _Called(LoadCall(request, tuple(parameters or ())))

    def Unload(self, request: str, first_time: bool | None, go_on: bool | None) -> None:
        raise _Called(UnloadCall(request, bool(first_time), bool(go_on)))

    def Settle(self, timeout_usec: int | None) -> None:
        raise _Called(SettleCall(timeout_usec))

    def Seal(self, sealed: bool) -> None:
        raise _Called(SealCall(sealed))

    def Reload(self) -> None:
        raise _Called(ReloadCall())


def _unusable(call: MethodCall) -> str:
    """The parameter of a wish that nothing on this machine can be meant by; empty: none."""
    if isinstance(call, SettleCall):
        usec = call.timeout_usec
        return "timeout_usec" if usec is not None and not 0 <= usec < 2**63 else ""
    if isinstance(call, ExplainCall) and call.request.startswith(("/", ".")):
        return "request"  # whether a file is there is not for everybody to know, and looking may take long
    texts = [getattr(call, "request", ""), *getattr(call, "parameters", ())]
    return "request" if any(len(text) > MAX_TEXT or "\0" in text or not _encodes(text) for text in texts) else ""


def _encodes(text: str) -> bool:
    try:
        encode(text)
    except UnicodeEncodeError:
        return False
    return True


@dataclass(slots=True, eq=False)
class Connection:
    """One caller."""

    socket: socket.socket
    uid: int
    """By SO_PEERCRED, of the moment it connected."""
    unread: bytes = b""
    """What came and is not yet a whole frame, or has to wait for the answer to the call before it."""
    unsent: bytes = b""
    waiting: bool = False
    """A call is with the daemon; Varlink answers one after the other."""
    oneway: bool = False
    """The caller of that wants no answer."""
    ended: bool = False
    """The caller sends nothing more; what it waits for still goes to it."""

    def fileno(self) -> int:
        """For select."""
        return self.socket.fileno()


class ControlSocket:
    """Listens, reads frames, writes answers. Never waits."""

    def __init__(self, path: str = CONTROL_SOCKET) -> None:
        """Listen at `path`, in the place of a socket that nobody serves any more.

        Raises OSError; EADDRINUSE where somebody does.
        """
        self._listening = UnixListener(path, socket.SOCK_STREAM, 0o666, MAX_CONNECTIONS)
        self.path = path
        self._service: varlink.Service | None = None
        self.connections: list[Connection] = []

    def fileno(self) -> int:
        """For select: readable when somebody connects."""
        return self._listening.socket.fileno()

    def accept(self) -> None:
        """Let in who waits at the door. One too many is sent away; for root, somebody else who waits for nothing is."""
        for _ in range(MAX_CONNECTIONS):
            accepted = self._listening.accept()
            if accepted is None:
                return
            accepted.setblocking(False)
            credentials = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            connection = Connection(accepted, _UCRED.unpack(credentials)[1])
            if len(self.connections) >= MAX_CONNECTIONS and connection.uid == 0:
                others = (other for other in self.connections if other.uid != 0)
                idle = next((other for other in others if other.ended or not other.waiting), None)
                if idle is not None:
                    self.drop(idle)
            if len(self.connections) < MAX_CONNECTIONS:
                self.connections.append(connection)
            else:
                accepted.close()

    def receive(self, connection: Connection) -> None:
        """Read what a caller sent; `next_call` says what it means."""
        try:
            data = connection.socket.recv(MAX_FRAME)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        connection.unread += data
        connection.ended = not data
        if len(connection.unread) > 2 * MAX_FRAME or (connection.ended and not self._is_owed(connection)):
            self.drop(connection)

    @staticmethod
    def _is_owed(connection: Connection) -> bool:
        """Something is still to be done for this caller."""
        return connection.waiting or bool(connection.unsent) or b"\0" in connection.unread

    def has_call(self) -> bool:
        """A whole call is there that `next_call` would give."""
        return any(b"\0" in c.unread and not c.waiting and not c.unsent for c in self.connections)

    def next_call(self, connection: Connection) -> MethodCall | None:
        """The next whole call of a caller that waits for none: answer it with `answer` or `refuse`, now or later."""
        while not connection.waiting and not connection.unsent and connection in self.connections:
            frame, nul, rest = connection.unread.partition(b"\0")
            if len(frame) >= MAX_FRAME:
                self.drop(connection)
                return None
            if not nul:
                return None
            connection.unread = rest
            if call := self._understand(connection, frame):
                connection.waiting = True
                return call
        return None

    def _understand(self, connection: Connection, frame: bytes) -> MethodCall | None:
        """Let the varlink package check one call; what it answers by itself (GetInfo, errors) goes out at once."""
        try:
            for reply in self._varlink().handle(frame):
                self._send(connection, reply + b"\0")
        except _Called as called:
            if why := _unusable(called.call):
                refusal = {"error": "org.varlink.service.InvalidParameter", "parameters": {"parameter": why}}
                self._reply(connection, refusal)
                return None
            if isinstance(called.call, LoadCall | UnloadCall | SealCall | ReloadCall) and connection.uid != 0:
                self._reply(connection, {"error": "io.kmodd.NotPermitted", "parameters": {}})
                return None
            import json  # only here and where it answers: a boot is not to wait for it

            connection.oneway = json.loads(frame).get("oneway") is True
            return called.call
        except Exception:  # a frame that is no JSON, or of a shape that the package does not survive
            self.drop(connection)
        return None

    def _varlink(self) -> varlink.Service:
        if self._service is None:
            import varlink

            folder = os.path.dirname(os.path.abspath(__file__))
            service = varlink.Service("kmodd", "kmodd", kmodd.__version__, "", interface_dir=folder)
            service.interface("io.kmodd")(_Interface)
            self._service = service
        return self._service

    def answer(self, connection: Connection, parameters: dict[str, Any]) -> None:
        """The call that waits has come out well."""
        self._end_call(connection, {"parameters": parameters})

    def refuse(self, connection: Connection, error: str, parameters: dict[str, Any]) -> None:
        """The call that waits ends with one of the interface's errors."""
        self._end_call(connection, {"error": f"io.kmodd.{error}", "parameters": parameters})

    def _end_call(self, connection: Connection, reply: dict[str, Any]) -> None:
        connection.waiting = False
        if not connection.oneway:
            self._reply(connection, reply)
        elif connection.ended:
            self.drop(connection)

    def _reply(self, connection: Connection, reply: dict[str, Any]) -> None:
        import json

        self._send(connection, json.dumps(reply).encode() + b"\0")

    def _send(self, connection: Connection, data: bytes) -> None:
        connection.unsent += data
        self.send_rest(connection)

    def send_rest(self, connection: Connection) -> None:
        """Write what the caller has room for; one that reads nothing is cut off."""
        try:
            sent = connection.socket.send(connection.unsent)
            connection.unsent = connection.unsent[sent:]
        except BlockingIOError:
            pass
        except OSError:
            self.drop(connection)
        done = connection.ended and not self._is_owed(connection)
        if done or len(connection.unsent) > MAX_UNREAD:
            self.drop(connection)

    def drop(self, connection: Connection) -> None:
        """End with a caller."""
        if connection in self.connections:
            self.connections.remove(connection)
        connection.socket.close()

    def close(self) -> None:
        """Stop listening."""
        self._listening.close()
        for connection in list(self.connections):
            self.drop(connection)
