"""Programs that serve HTTP on loopback, and answers from them."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE = 60.0
"""Seconds after which something has not happened."""


def free_port() -> int:
    """A TCP port of loopback on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@contextmanager
def serving(command: Sequence[str], port: int, log: Path) -> Iterator[None]:
    """A program that runs until the end of the block; it is waited for until its port accepts."""
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as program:
        try:
            wait_for(lambda: program.poll() is not None or _accepts(port))
            assert program.poll() is None, log.read_text()
            yield
        finally:
            program.terminate()


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until a condition is true."""
    end, never = time.monotonic() + PATIENCE, threading.Event()
    while not condition():
        assert time.monotonic() < end, f"not within {PATIENCE} s"
        never.wait(0.05)


def answer(url: str) -> Any:
    """The JSON that a server answers, once it is ready."""
    found: list[Any] = []

    def ready() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as reply:
                found.append(json.load(reply))
        except urllib.error.HTTPError:
            return False
        return True

    wait_for(ready)
    return found[0]


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
