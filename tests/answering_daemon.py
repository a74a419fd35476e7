"""A control socket that answers a number of calls, each with the same reply, in a thread: `daemon_of`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from select import select
from typing import Any

from kmodd.host.varlink_server import Connection, ControlSocket


@contextmanager
def daemon_of(folder: Path, reply: Mapping[str, Any], calls: int = 1) -> Iterator[str]:
    """A daemon that listens below `folder`. Yields the path of its socket."""
    control = ControlSocket(str(folder / "io.kmodd"))

    def serve() -> None:
        left = calls
        while left and select([control.fileno(), *map(Connection.fileno, control.connections)], [], [], 20)[0]:
            control.accept()
            for connection in list(control.connections):
                control.receive(connection)
                if control.next_call(connection):
                    control.answer(connection, dict(reply))
                    left -= 1

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield control.path
    finally:
        thread.join(30)
        control.close()
