"""What several unit tests work on."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.host.varlink_server import ControlSocket
from kmodd.modfile import decompress
from tests.unit.test_control import Caller
from tests.world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A machine whose daemon has read its tree."""
    it = World(tmp_path / "machine")
    it.engine.reload()
    yield it
    it.engine.close()
    if it.engine.view.watch:
        it.engine.view.watch.close()
    for thread in it.loaders.threads:
        thread.join(30)


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time stands still: what is tried again after a second is not, however slow this machine is."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)


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
