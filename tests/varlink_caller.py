"""A client of the control socket, driven step by step with the server."""

from __future__ import annotations

import json
import socket
from typing import Any, ClassVar

from kmodd.host.varlink_server import ControlSocket, MethodCall


class Caller:
    """A connection to a control socket in this process; `opened` has all of them, for the fixture to close."""

    opened: ClassVar[list[socket.socket]] = []

    def __init__(self, control: ControlSocket) -> None:
        self.control = control
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.opened.append(self.socket)
        self.socket.settimeout(30)
        self.socket.connect(control.path)
        control.accept()
        self.connection = control.connections[-1]

    def send(self, data: bytes) -> MethodCall | None:
        self.socket.sendall(data)
        self.control.receive(self.connection)
        return self.control.next_call(self.connection)

    def call(self, method: str, **parameters: Any) -> MethodCall | None:
        return self.send(json.dumps({"method": method, "parameters": parameters}).encode() + b"\0")

    def answers(self) -> list[dict[str, Any]]:
        return [json.loads(frame) for frame in self.socket.recv(1 << 20).split(b"\0") if frame]
