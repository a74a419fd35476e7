"""A machine below a folder, for unit tests of the line: loaders are threads, the kernel is played."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from pathlib import Path

from kmodd.daemon.engine import Engine
from kmodd.daemon.in_flight import AnyJob
from kmodd.host.file_watch import Watch
from kmodd.host.tree import Tree
from kmodd.kernel import uevent
from kmodd.loader import worker
from kmodd.loader.pool import Loader, LoaderPool
from kmodd.loader.syscalls import Kernel
from kmodd.loader.trusted_paths import Trusted
from tests.fakes import FakeKernel, ListJournal, Oops

RELEASE = "6.1.0-test"


class ThreadLoaders(LoaderPool):
    """Loaders in threads of this process: the same protocol, another kernel."""

    def __init__(self, kernel: Kernel, root: Path) -> None:
        """`root`: of the machine, whose usual places the loaders trust."""
        super().__init__(None)
        self.kernel = kernel
        self.trusted = Trusted.below(str(root))
        self.threads: list[threading.Thread] = []

    def get(self) -> Loader:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        thread = threading.Thread(target=self._serve, args=(theirs,))
        thread.start()
        self.threads.append(thread)
        return Loader(ours)

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(Oops):
            worker.serve(connection.fileno(), self.kernel, self.trusted)


class World:
    """A machine below a folder: a module tree, /proc/modules, and a line at work on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.modules = root / "lib/modules" / RELEASE
        self.modules.mkdir(parents=True)
        (root / "proc").mkdir()
        (root / "etc/modprobe.d").mkdir(parents=True)
        self.live()
        self.index(deps=["a.ko:", "b.ko: a.ko", "c.ko:"], aliases=["alias pci:v1* b", "alias pci:v2* c"])
        for name in "abc":
            (self.modules / f"{name}.ko").write_bytes(b"\x7fELF")
        self.kernel = FakeKernel()
        self.journal = ListJournal()
        self.loaders = ThreadLoaders(self.kernel, root)
        self.engine = Engine(Tree(root=str(root), release=RELEASE), self.journal, self.loaders)

    def index(self, deps: list[str], aliases: list[str]) -> None:
        for name, lines in (("modules.dep", deps), ("modules.alias", aliases)):
            beside = self.modules / f"{name}.new"
            beside.write_text("".join(f"{line}\n" for line in lines))
            beside.rename(self.modules / name)

    def live(self, *names: str) -> None:
        (self.root / "proc/modules").write_text("".join(f"{n} 1 0 - Live 0x0\n" for n in names))

    def watch(self) -> Watch:
        """The line is told of changed files from now on; nothing is watched before `set`, so it asks all the same."""
        self.engine.view.watch = Watch()
        return self.engine.view.watch

    def plug(self, alias: str, name: str = "0000:01:00.0", *, synthetic: bool = False) -> None:
        uuid = b"SYNTH_UUID=0\0" if synthetic else b""
        text = f"add@/devices/{name}\0SUBSYSTEM=pci\0MODALIAS={alias}\0".encode() + uuid
        self.engine.intake.take(uevent.parse(text), "uevent")

    def advance(self) -> None:
        """Until only lanes can bring the line on: as many rounds as the daemon has before it waits."""
        self.engine.advance()
        while self.engine.can_advance:
            self.engine.advance()

    def settle(self) -> list[AnyJob]:
        """Until the line is idle; each module that comes in is live from then on. The answer: the jobs that ended."""
        names: set[str] = set()
        self.engine.advance()
        while not self.engine.idle:
            for batch in self.engine.in_flight.busy()[:1]:
                with selectors.DefaultSelector() as selector:
                    selector.register(batch.lane, selectors.EVENT_READ)
                    assert selector.select(30)
                was_begun = b"\0none\0" not in batch.lane.connection.recv(65536, socket.MSG_PEEK)
                if was_begun and f"{batch.module}.ko" not in {*self.kernel.refuse, *self.kernel.oops}:
                    names.add(batch.module)
                    self.live(*names)
                self.engine.scheduler.heard(batch.lane)
            self.engine.advance()
        return self.engine.scheduler.take_ended()

    def told(self) -> list[tuple[str, str]]:
        """(KMODD_MODULE or MESSAGE_ID, KMODD_RESULT) of each record so far."""
        found = []
        for record in self.journal.records:
            fields = dict(record.fields)
            found.append((fields.get("KMODD_MODULE", record.message_id[-4:]), fields.get("KMODD_RESULT", "")))
        self.journal.records.clear()
        return found


def loads(world: World) -> list[str]:
    return [name for name, _, _ in world.kernel.calls]
