"""The client's side of the control socket: one call, one answer."""

from __future__ import annotations

import json
import socket

from kmodd.errors import KmoddError
from kmodd.host.paths import CONTROL_SOCKET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class NotRunning(KmoddError):
    """Nobody serves the control socket (exit status 7)."""


class Refused(KmoddError):
    """The daemon answered with one of the errors of io.kmodd."""

    def __init__(self, error: str, parameters: dict[str, Any]) -> None:
        """`error`: its whole name, `io.kmodd.TimedOut`."""
        super().__init__(f"{error} {json.dumps(parameters)}" if parameters else error)
        self.error = error
        self.parameters = parameters


def call(method: str, path: str = CONTROL_SOCKET, **parameters: Any) -> dict[str, Any]:
    """Call `io.kmodd.METHOD` and wait for its answer. Raises NotRunning, Refused."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        answer = bytearray()
        try:
            connection.connect(path)
            connection.sendall(json.dumps({"method": f"io.kmodd.{method}", "parameters": parameters}).encode() + b"\0")
            while not answer.endswith(b"\0"):
                data = connection.recv(65536)
                if not data:
                    raise NotRunning("the daemon ended the connection without an answer")
                answer += data
        except OSError as error:
            raise NotRunning(f"the daemon is not running: {path}: {error.strerror}") from None
    reply = json.loads(answer[:-1])
    if "error" in reply:
        raise Refused(reply["error"], reply.get("parameters", {}))
    result: dict[str, Any] = reply.get("parameters", {})
    return result
