"""Install and remove commands reach a runner of their own, and none of them ends without an answer."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kmodd.daemon.dispatcher import Dispatcher
from kmodd.engine.events import LoaderNamed, LoaderReplied, StartBatch
from kmodd.errors import Where
from kmodd.loader import pool as pools
from kmodd.loader.pool import Loader, LoaderPool
from kmodd.loader.protocol import CommandRequest, decode_command, encode_reply
from kmodd.names import ModuleName
from kmodd.planning.plan import Install, Reason, RemoveCommand
from kmodd.planning.reply import Reply

WHY = Reason("asked", "c")
AT = Where("/etc/modprobe.d/x.conf", 3)
INSTALL = Install(ModuleName("c"), "/bin/x", "x=1", AT, WHY, alias="eth0")
REMOVE = RemoveCommand(ModuleName("c"), "/bin/x", AT, WHY)


class Pool(LoaderPool):
    """A runner is one end of a socket pair, the other is `theirs`; there are no loaders."""

    def __init__(self) -> None:
        super().__init__(None)
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.setblocking(False)

    def get(self) -> Loader:
        raise AssertionError("a loader runs no commands")

    def open_runner(self) -> Loader:
        return Loader(self.ours)


@pytest.fixture
def pool() -> Iterator[Pool]:
    it = Pool()
    yield it
    it.ours.close()
    it.theirs.close()


@pytest.fixture
def dispatcher(pool: Pool) -> Dispatcher:
    return Dispatcher(pool, lambda path: f"/root{path}")


def runner_of(dispatcher: Dispatcher) -> Loader:
    ((_, runner),) = dispatcher.loaders
    return runner


@pytest.mark.parametrize(("step", "kind", "alias"), [(INSTALL, "install", "eth0"), (REMOVE, "remove", "")])
def test_a_runner_gets_module_and_line_and_is_used_once(
    pool: Pool, dispatcher: Dispatcher, step: Install | RemoveCommand, kind: str, alias: str
) -> None:
    """Neither command nor options: it reads them itself."""
    assert dispatcher.start(StartBatch(1, (step,))) == []
    pool.theirs.send(b"7")
    assert dispatcher.on_loader(runner_of(dispatcher)) == [LoaderNamed(1, 7)]
    sent = decode_command(pool.theirs.recv(65536))
    assert sent == CommandRequest("install" if kind == "install" else "remove", "c", AT, f"/root{AT.file}", alias)
    reply = Reply(errno.EINVAL, "command", 5, "exited with status 3", "3", "out")
    pool.theirs.send(encode_reply(reply))
    assert dispatcher.on_loader(runner_of(dispatcher)) == [LoaderReplied(1, reply)]
    assert dispatcher.loaders == ()
    assert pool.theirs.recv(1) == b"", "the connection is closed"
    assert pool.idle == []


@pytest.mark.parametrize(("pid", "why"), [(b"7", "ended without an answer"), (b"", "did not start")])
def test_a_runner_that_ends_without_an_answer_is_a_failed_command(
    pool: Pool, dispatcher: Dispatcher, pid: bytes, why: str
) -> None:
    """Not a loader that died: no other one is tried, as the command may have begun."""
    dispatcher.start(StartBatch(1, (INSTALL,)))
    if pid:
        pool.theirs.send(pid)
        dispatcher.on_loader(runner_of(dispatcher))
    pool.theirs.close()
    (event,) = dispatcher.on_loader(runner_of(dispatcher))
    assert isinstance(event, LoaderReplied)
    assert (event.reply.errno, event.reply.stage) == (errno.EIO, "command")
    assert why in event.reply.detail


def test_a_command_without_a_runner_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The socket is missing: its unit was stopped, or the units are of an earlier version."""
    monkeypatch.setattr(pools, "COMMAND_SOCKET", f"{tmp_path}/none")
    (event,) = Dispatcher(LoaderPool(), str).start(StartBatch(1, (INSTALL,)))
    assert isinstance(event, LoaderReplied)
    assert (event.reply.errno, event.reply.stage) == (errno.ENOENT, "command")
    assert event.reply.detail.startswith("Failed to start the install command: ")
    assert f"{tmp_path}/none" in event.reply.detail


def test_the_end_of_the_daemon_closes_the_connection_and_nothing_else(pool: Pool, dispatcher: Dispatcher) -> None:
    dispatcher.start(StartBatch(1, (INSTALL,)))
    pool.theirs.recv(65536)
    dispatcher.close()
    assert pool.theirs.recv(1) == b""
