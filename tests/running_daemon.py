"""An engine, loaders and a control socket on a fake machine, which modprobe takes for the daemon: `daemon_on`."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kmodd.cli.kmod import modprobe
from kmodd.cli.kmod.modprobe_remote import Daemon
from kmodd.daemon.control_handler import Actions, ControlHandler
from kmodd.daemon.dispatcher import Dispatcher
from kmodd.engine.engine import Engine
from kmodd.engine.events import (
    Advance,
    Event,
    Finish,
    Log,
    PolicyMarks,
    Requested,
    StartBatch,
    Started,
    StopBatch,
    TurnAway,
)
from kmodd.host.machine import HostMachine
from kmodd.host.paths import TREES
from kmodd.host.tree import Tree
from kmodd.host.varlink_server import ControlSocket
from kmodd.loader.pool import Loader
from kmodd.planning.record import Record
from kmodd.state.quarantine import Quarantine
from tests import rootfs
from tests.fake_machine import FakeMachine
from tests.thread_loaders import ThreadLoaders


class Running:
    """An engine with loaders and a control socket on a fake machine, in a thread."""

    def __init__(self, machine: FakeMachine, path: Path, *, dry_run: bool = False) -> None:
        tree = Tree(root=str(machine.root), release=rootfs.RELEASE)
        self._pool = ThreadLoaders(machine, machine.root)
        self._dispatcher = Dispatcher(self._pool, tree.real)
        self.engine = Engine(HostMachine(tree), PolicyMarks(), Quarantine(), dry_run=dry_run)
        self.control = ControlSocket(str(path))
        actions = Actions(self.handle, tuple, dict)
        self._handler = ControlHandler(self.engine, self.control, actions, str(machine.root))
        self.calls = 0
        self.records: list[Record] = []
        self.handle(Started())
        self._stop, self._wake = socket.socketpair()
        self._thread = threading.Thread(target=self._loop)
        self._thread.start()

    def handle(self, event: Event) -> None:
        self.calls += isinstance(event, Requested)
        for command in self.engine.handle(event, time.monotonic()):
            match command:
                case StartBatch():
                    self._handle_all(self._dispatcher.start(command))
                case StopBatch(batch):
                    self._dispatcher.stop(batch)
                case Log(record):
                    self.records.append(record)
                case Finish(job):
                    self._handler.finished(job)
                case TurnAway(request, why):
                    self._handler.turned_away(request, why)
                case _:
                    pass  # nothing else is seen by modprobe

    def _handle_all(self, events: list[Event]) -> None:
        for event in events:
            self.handle(event)

    def _loop(self) -> None:
        while True:
            with selectors.DefaultSelector() as selector:
                sources = (self._stop, self.control, *self.control.connections, *self._dispatcher.sources)
                for source in sources:
                    selector.register(source, selectors.EVENT_READ, source)
                for key, _ in selector.select(30):
                    if key.data is self._stop:
                        return
                    if key.data is self.control:
                        self.control.accept()
                    elif isinstance(key.data, Loader):
                        self._handle_all(self._dispatcher.on_loader(key.data))
                    else:
                        self.control.receive(key.data)
            while self._handler.handle_call():
                pass
            self.engine.state.system.drop_loaded()  # as the kernel's uevents would have it
            while self.engine.can_advance(time.monotonic()):
                self.handle(Advance())

    def close(self) -> None:
        self._wake.close()
        self._thread.join(30)
        self._stop.close()
        self.control.close()
        self._dispatcher.close()
        self._pool.join()


@contextmanager
def daemon_on(
    machine: FakeMachine, patch: pytest.MonkeyPatch, folder: Path, *, dry_run: bool = False
) -> Iterator[Running]:
    """A daemon runs on the machine, and modprobe finds it."""
    running = Running(machine, folder / "io.kmodd", dry_run=dry_run)
    trees = tuple(f"{machine.root}{tree}" for tree in TREES)
    patch.setattr(modprobe, "shares_tree", lambda options, machine: "no-daemon" not in options.flags)
    patch.setattr(Daemon, "within_reach", lambda how, messages: Daemon(how, messages, running.control.path, trees))
    try:
        yield running
    finally:
        running.close()
