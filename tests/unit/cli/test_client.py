"""The client of the control socket, with a daemon that is not what it should be."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from kmodd.cli import client
from kmodd.cli.client import NotRunning, call, replies


@pytest.mark.parametrize("streams", [False, True])
def test_a_reply_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streams: bool) -> None:
    monkeypatch.setattr(client, "MAX_REPLY", 1 << 20)
    path = str(tmp_path / "control")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(path)
        listening.listen()

        def flood() -> None:
            connection, _ = listening.accept()
            with connection:
                try:
                    for _ in range(1024):
                        connection.sendall(b"x" * 65536)
                except OSError:
                    return

        thread = threading.Thread(target=flood, daemon=True)
        thread.start()
        with pytest.raises(NotRunning, match="longer than"):
            [*replies("Monitor", path)] if streams else call("Status", path)
        thread.join(30)
