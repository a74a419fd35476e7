"""Loaders in reserve, and spawners that are gone: `LoaderPool` on real sockets."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from unittest.mock import Mock

import pytest

from kmodd.loader.pool import Died, Loader, LoaderPool
from kmodd.loader.spawner import Spawner


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time stands still: what is tried again after a pause is not, however slow this machine is."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[socket.socket]]:
    """The far ends of the spawners that systemd has made."""
    asked: list[socket.socket] = []

    def of_systemd() -> Spawner:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asked.append(theirs)
        return Spawner(ours)

    monkeypatch.setattr(Spawner, "of_systemd", of_systemd)
    yield asked
    for theirs in asked:
        theirs.close()


@pytest.mark.usefixtures("still")
def test_loaders_that_die_at_birth_are_not_started_without_end(asked: list[socket.socket]) -> None:
    """Systemd takes the connection, and starts nothing that could read from it."""
    loaders = LoaderPool()
    for _ in range(100):
        loaders.keep_spare()
        for theirs in asked:
            theirs.close()
        for loader in list(loaders.idle):
            assert loader.receive() == Died()
            loaders.lost(loader)
    assert len(asked) == 1
    loaders.close()


@pytest.mark.usefixtures("asked")
def test_loaders_in_reserve_beyond_the_number_to_keep_are_let_go() -> None:
    loaders = LoaderPool()
    loaders.keep_spare(4)
    first, second, *others = loaders.idle
    loaders.resize(2)
    assert loaders.idle == [first, second]
    assert [each.fileno() for each in others] == [-1, -1]
    loaders.close()


def test_a_spawner_of_systemds_that_is_gone_is_replaced(asked: list[socket.socket]) -> None:
    """It was killed, or an administrator has stopped its unit: the next loader is another one's."""
    loaders = LoaderPool()
    first = loaders.open()
    asked[0].close()
    assert first.receive() == Died()
    second = loaders.open()
    message, (passed,), *_ = socket.recv_fds(asked[1], 64, 1)
    assert message == b"loader"
    with socket.socket(fileno=passed) as loader:
        loader.send(b"7")
    assert second.receive() is None
    assert second.pid == 7
    assert len(asked) == 2
    first.close()
    second.close()
    loaders.close()


def test_systemds_socket_may_be_away_for_a_while(asked: list[socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its unit is restarted: "kmodd looks again every few seconds"."""
    loaders = LoaderPool()
    first = loaders.open()
    asked[0].close()
    with monkeypatch.context() as away:
        away.setattr(Spawner, "of_systemd", Mock(side_effect=FileNotFoundError))
        for _ in range(2):
            with pytest.raises(FileNotFoundError):
                loaders.open()
    loaders.open().close()
    first.close()
    loaders.close()


def test_a_spawner_of_its_own_that_is_gone_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon has dropped what a new one would need."""
    monkeypatch.setattr(Spawner, "of_systemd", lambda: pytest.fail("there is no systemd"))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    loaders = LoaderPool(Spawner(ours, pid=1))
    with pytest.raises(BrokenPipeError):
        loaders.open()
    loaders.close()


@pytest.mark.parametrize("said", [b"nonsense", b"\0", b"0\0kernel\0x\0", b"0\0kernels\0001\0"])
def test_a_loader_with_an_invalid_reply_counts_as_gone(said: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with theirs:
        for pid in (0, 7):
            theirs.send(said)
            assert Loader(ours, pid=pid).receive() == Died()
    ours.close()
