"""What several unit tests work on."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.host.varlink_server import ControlSocket
from kmodd.modfile import decompress
from tests.control_server import ControlServer
from tests.varlink_caller import Caller
from tests.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A machine whose engine has read its tree."""
    return World(tmp_path / "machine")


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """A limit of 1,000 bytes for what a compressed module unpacks to, in place of 1 GiB."""
    monkeypatch.setattr(decompress.unpack, "__defaults__", (1000,))
    return 1000


@pytest.fixture
def alone_with_devices() -> Iterator[None]:
    """No other test has this machine's devices speak meanwhile: the kernel tells everybody, whatever the process."""
    devices = os.open("/sys/devices", os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(devices, fcntl.LOCK_EX)
    yield
    os.close(devices)


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlSocket]:
    """A control socket that listens; what called on it is closed at the end."""
    it = ControlSocket(str(tmp_path / "io.kmodd"))
    yield it
    it.close()
    while Caller.opened:
        Caller.opened.pop().close()


@pytest.fixture
def server(world: World, control: ControlSocket) -> ControlServer:
    """What answers on the control socket for the world's engine."""
    return ControlServer(world, control)
