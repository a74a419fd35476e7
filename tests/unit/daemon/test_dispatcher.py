"""Batches and probes reach loader processes, and their answers the engine: `Dispatcher` on real sockets."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from kmodd.daemon.dispatcher import Dispatcher
from kmodd.engine.events import (
    AskStack,
    Event,
    LoaderDied,
    LoaderNamed,
    LoaderReplied,
    StackRead,
    StartBatch,
    StartProbe,
)
from kmodd.kernel.kmsg import KernelLine
from kmodd.loader import worker
from kmodd.loader.pool import LoaderPool, loader_on
from kmodd.loader.protocol import ProbeRequest, StopRequest, decode_request, encode_reply
from kmodd.loader.trusted_paths import Trusted
from kmodd.names import ModuleName
from kmodd.planning.plan import Insmod, Reason
from kmodd.planning.reply import Reply
from tests.fakes import FakeKernel
from tests.world import World

WHY = Reason("asked", "b")
BOTH = (Insmod(ModuleName("a"), "/a.ko", "", WHY), Insmod(ModuleName("b"), "/b.ko", "", WHY))
DONE = Reply(0, "kernel", 5)


class Far:
    """The loader's end of a connection; the process itself is the test."""

    def __init__(self) -> None:
        ours, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pool = LoaderPool()
        self.loader = loader_on(ours)
        self.pool.give_back(self.loader)
        self.dispatcher = Dispatcher(self.pool, str)
        self.socket.send(b"7")
        assert self.hear() == []

    def hear(self) -> list[Event]:
        """What the dispatcher makes of the next datagram."""
        return self.dispatcher.on_loader(self.loader)


@pytest.fixture
def far() -> Iterator[Far]:
    it = Far()
    yield it
    it.dispatcher.close()
    it.socket.close()


# -- loaders that end: unix(7), the end of a peer with data unread is ECONNRESET here ---------------------------------


def test_an_unread_batch_was_not_begun(far: Far) -> None:
    assert far.dispatcher.start(StartBatch(1, BOTH)) == [LoaderNamed(1, 7)]
    far.socket.close()
    assert far.hear() == [LoaderDied(1, begun=False)]


def test_an_unread_stop_is_no_unread_batch(far: Far) -> None:
    far.dispatcher.start(StartBatch(1, BOTH))
    far.socket.recv(65536)
    far.dispatcher.stop(1)
    far.socket.close()
    assert far.hear() == [LoaderDied(1, begun=True)]


def test_an_answer_before_the_end_is_not_lost(far: Far) -> None:
    far.dispatcher.start(StartBatch(1, BOTH))
    far.socket.recv(65536)
    far.socket.send(encode_reply(DONE))
    far.dispatcher.stop(1)
    far.socket.close()
    assert far.hear() == [LoaderReplied(1, DONE)]
    assert far.hear() == [LoaderDied(1, begun=True)]


OOPS = KernelLine(4, 1, 1, "Oops: 0002 [#1]")


def test_the_kernel_log_comes_with_the_end(far: Far) -> None:
    dispatcher = Dispatcher(far.pool, str, lambda: (OOPS,))
    dispatcher.start(StartBatch(1, BOTH))
    far.socket.recv(65536)
    far.socket.close()
    assert dispatcher.on_loader(far.loader) == [LoaderDied(1, begun=True, kernel_log=(OOPS,))]


def test_a_loader_terminated_during_an_init_finishes_its_batch(world: World) -> None:
    """SIGTERM while a is in its init: b, which was not begun, is not lost."""

    class Terminated(FakeKernel):
        def finit_module(self, fd: int, options: str, flags: int) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if not pid:
        ours.close()
        worker.serve(theirs.fileno(), Terminated(), Trusted.below(str(world.root)))
        os._exit(0)
    theirs.close()
    loader, pool = loader_on(ours), LoaderPool()
    pool.give_back(loader)
    dispatcher = Dispatcher(pool, world.tree.real)
    world.plug("pci:v1")
    world.advance()
    (number,) = world.started
    events = dispatcher.start(StartBatch(number, tuple(world.started[number].steps)))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    for _ in range(3):
        events += dispatcher.on_loader(loader)
    for event in events:
        world.handle(event)
    assert world.told() == [("a", "loaded"), ("b", "loaded")]
    dispatcher.close()


# -- what else a loader is asked --------------------------------------------------------------------------------------


def test_a_stop_reaches_the_loader_of_its_batch_alone(far: Far) -> None:
    far.dispatcher.stop(1)
    far.dispatcher.start(StartBatch(2, BOTH))
    far.dispatcher.stop(1)
    far.dispatcher.stop(2)
    far.socket.recv(65536)
    assert decode_request(far.socket.recv(65536)) == StopRequest()
    far.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        far.socket.recv(65536)


def test_a_probe_is_answered_once_and_its_loader_is_free(far: Far) -> None:
    assert far.dispatcher.start_probe(StartProbe(1, "pci", "0000:01:00.0")) == [LoaderNamed(1, 7)]
    assert far.pool.idle == []
    assert decode_request(far.socket.recv(65536)) == ProbeRequest("pci", "0000:01:00.0")
    far.socket.send(encode_reply(DONE))
    assert far.hear() == [LoaderReplied(1, DONE)]
    assert far.pool.idle == [far.loader]


def test_a_stack_that_cannot_be_asked_for_is_empty(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(far.pool, "ask_stack", lambda pid: None)
    assert far.dispatcher.ask_stack(AskStack(1, 7)) == [StackRead(1, ())]
