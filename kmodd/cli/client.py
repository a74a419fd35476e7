"""Client of the control socket: one Varlink call on one connection, with one reply or a stream of them."""

from __future__ import annotations

import json
import socket

from kmodd.errors import KmoddError
from kmodd.host.paths import CONTROL_SOCKET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any


MAX_REPLY = 64 << 20
"""Bytes of a reply at most; one with the state of 10,000 devices has a few MB."""


class NotRunning(KmoddError):
    """The daemon does not listen on the control socket (exit status 7)."""


class Ended(NotRunning):
    """The daemon has closed the connection of a stream."""


class Refused(KmoddError):
    """The daemon replied with one of the errors of io.kmodd."""

    def __init__(self, error: str, parameters: dict[str, Any]) -> None:
        """Store the reply; `error` is the qualified name, such as `io.kmodd.TimedOut`."""
        super().__init__(f"{error} {json.dumps(parameters)}" if parameters else error)
        self.error = error
        self.parameters = parameters


def call(
    method: str, path: str = CONTROL_SOCKET, offers: Sequence[int] = (), limit: float | None = None, **parameters: Any
) -> dict[str, Any]:
    """Call `io.kmodd.METHOD` and return the parameters of the reply.

    offers: descriptors to send with the call. limit: seconds to wait at most; None: no limit. Raises NotRunning if
    there is no daemon or no reply, Refused if the reply is an error.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(limit)
        answer = bytearray()
        try:
            connection.connect(path)
            frame = json.dumps({"method": f"io.kmodd.{method}", "parameters": parameters}).encode() + b"\0"
            if offers:
                frame = frame[socket.send_fds(connection, [frame], offers) :]
            connection.sendall(frame)
            while not answer.endswith(b"\0"):
                data = connection.recv(65536)
                if not data:
                    raise NotRunning("the daemon closed the connection without a reply")
                answer += data
                if len(answer) > MAX_REPLY:
                    raise NotRunning(f"the reply of the daemon is longer than {MAX_REPLY} bytes")
        except OSError as error:
            raise NotRunning(f"the daemon is not running: {error.strerror or 'no reply in time'}: {path}") from None
    return _parameters(json.loads(answer[:-1]))


def replies(method: str, path: str = CONTROL_SOCKET, **parameters: Any) -> Iterator[dict[str, Any]]:
    """Call `io.kmodd.METHOD` with `more`, and yield the parameters of each reply until the last one.

    Raises NotRunning if there is no daemon, Ended if it closes the connection before, Refused if a reply is an error.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(path)
            frame = {"method": f"io.kmodd.{method}", "parameters": parameters, "more": True}
            connection.sendall(json.dumps(frame).encode() + b"\0")
        except OSError as error:
            raise NotRunning(f"the daemon is not running: {error.strerror}: {path}") from None
        rest, continues = b"", True
        while continues:
            try:
                data = connection.recv(65536)
            except OSError:
                data = b""
            if not data:
                raise Ended("the daemon has closed the connection")
            *frames, rest = (rest + data).split(b"\0")
            if len(rest) > MAX_REPLY:
                raise Ended(f"the reply of the daemon is longer than {MAX_REPLY} bytes")
            for reply in map(json.loads, frames):
                continues = reply.get("continues") is True
                yield _parameters(reply)


def _parameters(reply: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of a reply. Raises Refused if it is an error."""
    if "error" in reply:
        raise Refused(reply["error"], reply.get("parameters", {}))
    result: dict[str, Any] = reply.get("parameters", {})
    return result
