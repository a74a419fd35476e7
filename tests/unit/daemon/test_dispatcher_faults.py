"""Loaders that cannot be started, or that end at once, reach the engine as events: `Dispatcher` on real sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from kmodd.daemon.dispatcher import TRIES, Dispatcher
from kmodd.engine.events import LoaderDied, LoaderNamed, LoaderReplied, NotStarted, StartBatch
from kmodd.loader.pool import Loader, LoaderPool
from kmodd.loader.protocol import encode_reply
from kmodd.names import ModuleName
from kmodd.planning.plan import Insmod, Reason
from kmodd.planning.reply import Reply

STEP = Insmod(ModuleName("c"), "/c.ko", "", Reason("asked", "c"))
LONG = Insmod(ModuleName("c"), "/" + "x" * 70000, "", Reason("asked", "c"))


class Pool(LoaderPool):
    """Each loader is one end of a socket pair; the other one is in `theirs`."""

    def __init__(self) -> None:
        super().__init__(None)
        self.theirs: list[socket.socket] = []

    def open(self) -> Loader:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.theirs.append(theirs)
        return Loader(ours)


@pytest.fixture
def pool() -> Iterator[Pool]:
    it = Pool()
    yield it
    it.close()
    for theirs in it.theirs:
        theirs.close()


@pytest.fixture
def dispatcher(pool: Pool) -> Iterator[Dispatcher]:
    it = Dispatcher(pool, str)
    yield it
    it.close()


def close_all(pool: Pool) -> None:
    for theirs in pool.theirs:
        theirs.close()


def test_loaders_that_end_before_a_word_are_not_started_without_end(pool: Pool, dispatcher: Dispatcher) -> None:
    """systemd accepts a connection and closes it where it cannot start the loader, or where there are too many."""
    events: list[object] = []
    for number in range(TRIES):
        assert dispatcher.start(StartBatch(number, (STEP,))) == []
        close_all(pool)
        ((_, loader),) = dispatcher.loaders
        events += dispatcher.on_loader(loader)
    assert events == [LoaderDied(number, begun=False) for number in range(TRIES)]
    (refused,) = dispatcher.start(StartBatch(TRIES, (STEP,)))
    assert refused == NotStarted(TRIES, "no loader: each one is gone at once")
    assert len(pool.theirs) == TRIES


def test_a_loader_that_is_gone_is_replaced_at_once(pool: Pool, dispatcher: Dispatcher) -> None:
    """Those in reserve may all be old."""
    pool.keep_spare(2)
    close_all(pool)
    assert dispatcher.start(StartBatch(1, (STEP,))) == []
    assert len(pool.theirs) == 3


def test_the_loader_at_work_and_the_one_in_reserve_die_in_one_round(pool: Pool, dispatcher: Dispatcher) -> None:
    dispatcher.start(StartBatch(1, (STEP,)))
    pool.keep_spare()
    both = [loader for _, loader in dispatcher.loaders]
    assert len(both) == 2
    pool.theirs[0].recv(65536)
    close_all(pool)
    assert [event for loader in both for event in dispatcher.on_loader(loader)] == [LoaderDied(1, begun=True)]
    assert dispatcher.sources == ()


def test_a_step_longer_than_a_datagram_is_not_started(pool: Pool, dispatcher: Dispatcher) -> None:
    (refused,) = dispatcher.start(StartBatch(1, (LONG,)))
    assert isinstance(refused, NotStarted)
    assert refused.too_long
    assert dispatcher.start(StartBatch(2, (STEP,))) == [], "the loader is used for the next batch"
    assert len(pool.theirs) == 1


def test_a_loader_is_free_after_the_last_answer_or_an_error(pool: Pool, dispatcher: Dispatcher) -> None:
    dispatcher.start(StartBatch(1, (STEP, STEP)))
    ((_, loader),) = dispatcher.loaders
    pool.theirs[0].send(b"7")
    assert dispatcher.on_loader(loader) == [LoaderNamed(1, 7)]
    for batch, answer in ((1, Reply(0, "kernel", 1)), (1, Reply(0, "kernel", 1)), (2, Reply(19, "kernel", 1))):
        if pool.idle:
            assert dispatcher.start(StartBatch(batch, (STEP, STEP))) == [LoaderNamed(2, 7)]
        assert pool.idle == []
        pool.theirs[0].send(encode_reply(answer))
        assert dispatcher.on_loader(loader) == [LoaderReplied(batch, answer)]
    assert pool.idle == [loader]
