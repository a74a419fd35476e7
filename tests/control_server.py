"""The daemon's side of the control socket, beside a world: calls are handled step by step."""

from __future__ import annotations

import json
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kmodd.daemon import status
from kmodd.daemon.control_handler import Actions, ControlHandler
from kmodd.engine.events import Event, ReloadRequested
from kmodd.errors import Problem
from kmodd.host.varlink_server import ControlSocket
from tests.varlink_caller import Caller
from tests.world import World


class ControlServer:
    """The daemon's side of the control socket."""

    def __init__(self, world: World, socket: ControlSocket) -> None:
        self.world = world
        self.socket = socket
        self.report = status.StatusReport(world.tree, world.engine, dry_run=False, since=0.0)
        actions = Actions(self._handle, self._reload, self._status)
        self.handler = ControlHandler(world.engine, socket, actions, str(world.root))
        world.listeners.append(self.handler)
        world.readers.append(self.handler.logged)

    def _handle(self, event: Event) -> None:
        self.world.handle(event)

    def _reload(self) -> tuple[Problem, ...]:
        self.world.handle(ReloadRequested())
        return tuple(self.world.engine.problems)

    def _status(self) -> dict[str, Any]:
        return self.report.reply(self.world.loaders, (), 0, self.world.now, self.socket.dropped)

    def send(self, caller: Caller, method: str, **parameters: Any) -> None:
        """A caller makes a call, and the daemon handles it."""
        self.send_text(caller, json.dumps({"method": f"io.kmodd.{method}", "parameters": parameters}))

    def subscribe(self, caller: Caller, uid: int | None = None) -> None:
        """A caller, of this user, asks for all records from now on."""
        if uid is not None:
            caller.connection.uid = uid
        self.send_text(caller, json.dumps({"method": "io.kmodd.Monitor", "more": True}))

    def send_text(self, caller: Caller, text: str) -> None:
        """The same with the call as it is on the wire."""
        caller.socket.sendall(text.encode() + b"\0")
        self.socket.receive(caller.connection)
        while self.handler.handle_call():
            pass


@contextmanager
def serving(server: ControlServer, uid: int = 0) -> Iterator[str]:
    """Serve all callers in a thread, as this user. Yields the path of the socket."""
    ours, theirs = socket.socketpair()
    control = server.socket

    def serve() -> None:
        while True:
            sources: list[Any] = [theirs, control, *control.connections]
            ready = select.select(sources, [], [], 0.1)[0]
            if theirs in ready:
                return
            control.accept()
            for connection in list(control.connections):
                connection.uid = uid
                control.receive(connection)
            while server.handler.handle_call():
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield control.path
    finally:
        ours.close()
        thread.join(30)
        theirs.close()


def is_answered(caller: Caller) -> bool:
    """Whether there is an answer to read."""
    return bool(select.select([caller.socket], [], [], 0)[0])
