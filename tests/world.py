"""A machine below a folder with the engine at work on it: no thread, no socket, and a clock that tests set.

The module tree, configuration and /proc/modules are real files. Loaders and the kernel's inits are played: a batch that
the engine starts stays in `started` until a test ends its steps.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from kmodd.config.modules_load_d import BootList, BootModule
from kmodd.engine.engine import Engine
from kmodd.engine.events import (
    Advance,
    AnyJob,
    AskStack,
    BootFinished,
    BootListRead,
    Busy,
    Command,
    DevicesFound,
    DropStack,
    Event,
    FilesChanged,
    Finish,
    LoaderDied,
    LoaderNamed,
    LoaderReplied,
    Log,
    LookAtLoaders,
    MarkPolicy,
    NotStarted,
    PolicyMarks,
    ReadAhead,
    ReloadRequested,
    Replay,
    ReplayDevices,
    Requested,
    SealRequested,
    StackRead,
    StartBatch,
    Started,
    StartProbe,
    StopBatch,
    Tick,
    TurnAway,
    UeventReceived,
    UeventsLost,
)
from kmodd.errors import Where, assert_never
from kmodd.host.machine import HostMachine
from kmodd.host.tree import Tree
from kmodd.kernel import uevent
from kmodd.kernel.kmsg import KernelLine
from kmodd.kernel.requester import Requester
from kmodd.kernel.uevent import Uevent
from kmodd.loader.pool import Loader
from kmodd.planning.plan import Insmod, Rmmod
from kmodd.planning.record import DEBUG, Record
from kmodd.planning.reply import Reply, Stage
from kmodd.planning.request import Origin, RemovalOptions, Request
from kmodd.state.quarantine import Quarantine

RELEASE = "6.1.0-test"


class Listener(Protocol):
    """Who gets the results of requests."""

    def finished(self, job: AnyJob) -> None:
        """A job is complete."""

    def turned_away(self, request: Request, why: Busy) -> object:
        """A request is not taken."""


class StartedBatch:
    """A batch that a loader has: which of its steps is next, and whether the loader was told to end after it."""

    def __init__(self, command: StartBatch, pid: int) -> None:
        self.number = command.batch
        self.steps = list(command.steps)
        self.pid = pid
        self.is_stopping = False

    @property
    def module(self) -> str:
        """The module of the current step."""
        return self.steps[0].module

    @property
    def modules(self) -> list[str]:
        """Those of all steps that are left."""
        return [step.module for step in self.steps]


class World:
    """Modules a, b (needs a) and c; pci:v1* is b, pci:v2* is c. Verbs: plug, order, ask, finish, die, pass_time, …"""

    def __init__(
        self,
        root: Path,
        *,
        marks: PolicyMarks | None = None,
        quarantine: Quarantine | None = None,
        dry_run: bool = False,
        has_tree: bool = True,
        log_level: int | None = DEBUG,
    ) -> None:
        """`has_tree`: False hides the module tree from the start.

        log_level: of records, as in syslog(3); None: that of kmodd.conf.
        """
        self.root = root
        self.modules = root / "lib/modules" / RELEASE
        if not self.modules.exists():
            self.modules.mkdir(parents=True)
            (root / "proc").mkdir()
            (root / "etc/modprobe.d").mkdir(parents=True)
            self.live()
            self.index(deps=["a.ko:", "b.ko: a.ko", "c.ko:"], aliases=["alias pci:v1* b", "alias pci:v2* c"])
            for name in "abc":
                (self.modules / f"{name}.ko").write_bytes(b"\x7fELF")
        if not has_tree:
            self.modules.rename(root / "hidden")
        self.refuse: dict[str, int] = {}
        """Module → errno of its init, for `settle`."""
        self.oops: set[str] = set()
        """Modules whose init takes the loader along, for `settle`."""
        self.calls: list[str] = []
        """Modules that `finish`, `die` and `settle` had a loader begin, in order."""
        self.now = 1000.0
        self.started: dict[int, StartedBatch] = {}
        self.finished: list[AnyJob] = []
        self.turned_away: list[tuple[Request, Busy]] = []
        self.listeners: list[Listener] = []
        """Who gets what has finished, as callers do in the daemon."""
        self.readers: list[Callable[[Log], None]] = []
        """Who gets what is recorded."""
        self.records: list[Record] = []
        self.replays: list[str] = []
        self.stacks: list[AskStack] = []
        self.looks: list[LookAtLoaders] = []
        self.probes: list[StartProbe] = []
        self.read_ahead: list[str] = []
        self.marks: PolicyMarks | None = None
        self.no_loader = ""
        """Why no loader can be started; empty: one can."""
        self._pid = 4000
        self.tree = Tree(root=str(root), release=RELEASE)
        self.machine = HostMachine(self.tree)
        self.engine = Engine(
            self.machine, marks or PolicyMarks(), quarantine or Quarantine(), uuid="ours", dry_run=dry_run
        )
        self.engine.set_log_level(log_level)
        self.state = self.engine.state
        self.handle(Started())
        self.replays.clear()
        self.state.queue.cancel_replay()

    # -- files -------------------------------------------------------------------------------------------------

    def index(self, deps: list[str], aliases: list[str]) -> None:
        """Replace modules.dep and modules.alias."""
        for name, lines in (("modules.dep", deps), ("modules.alias", aliases)):
            beside = self.modules / f"{name}.new"
            beside.write_text("".join(f"{line}\n" for line in lines))
            beside.rename(self.modules / name)

    def live(self, *names: str) -> None:
        """The kernel has these modules, and no others."""
        self.write_modules(dict.fromkeys(names, "Live"))

    def write_modules(self, states: dict[str, str]) -> None:
        """Write /proc/modules: module → `Live`, `Loading` or `Unloading`."""
        lines = (f"{name} 1 0 - {state} 0x0\n" for name, state in states.items())
        (self.root / "proc/modules").write_text("".join(lines))

    def add_live(self, name: str) -> None:
        """The kernel has this module, too."""
        with (self.root / "proc/modules").open("a") as file:
            file.write(f"{name} 1 0 - Live 0x0\n")

    def configure(self, text: str) -> None:
        """Replace kmodd.conf, which `reload` reads."""
        (self.root / "etc/kmodd").mkdir(exist_ok=True)
        (self.root / "etc/kmodd/kmodd.conf").write_text(text)

    def set_rules(self, *lines: str) -> None:
        """Enforce these rules of policy.d."""
        (self.root / "etc/kmodd/policy.d").mkdir(parents=True, exist_ok=True)
        self.configure("[Kmodd]\nPolicy=enforce\n")
        (self.root / "etc/kmodd/policy.d/x.conf").write_text("".join(f"{line}\n" for line in lines))
        self.reload()

    def add_files(self, *names: str) -> None:
        """The tree has files of these modules, too."""
        for name in names:
            (self.modules / f"{name}.ko").write_bytes(b"\x7fELF")

    # -- events ------------------------------------------------------------------------------------------------

    def handle(self, event: Event) -> list[Command]:
        """Have the engine handle an event now, and carry out its commands. Returns those."""
        commands = self.engine.handle(event, self.now)
        for command in commands:
            self._execute(command)
        return commands

    def _execute(self, command: Command) -> None:
        match command:
            case StartBatch():
                if self.no_loader:
                    self.handle(NotStarted(command.batch, self.no_loader))
                    return
                self._pid += 1
                self.started[command.batch] = StartedBatch(command, self._pid)
                self.handle(LoaderNamed(command.batch, self._pid))
            case StopBatch(batch):
                if batch in self.started:
                    self.started[batch].is_stopping = True
            case Log(record):
                self.records.append(record)
                for reader in self.readers:
                    reader(command)
            case Finish(job):
                self.finished.append(job)
                for listener in self.listeners:
                    listener.finished(job)
            case TurnAway(request, why):
                self.turned_away.append((request, why))
                for listener in self.listeners:
                    listener.turned_away(request, why)
            case ReplayDevices(replay):
                self.replays.append(replay)
            case AskStack():
                self.stacks.append(command)
            case LookAtLoaders():
                self.looks.append(command)
            case DropStack(batch):
                self.stacks = [each for each in self.stacks if each.batch != batch]
            case StartProbe():
                self.probes.append(command)
            case ReadAhead(paths):
                self.read_ahead += paths
            case MarkPolicy(marks, spent):
                self.marks = marks
                if spent:
                    (self.root / "run/kmodd/flags" / spent).unlink()
            case _:
                assert_never(command)

    def plug(self, alias: str, name: str = "0000:01:00.0", *, synthetic: bool = False) -> None:
        """A device with this modalias appears; `synthetic`: its uevent was triggered by hand."""
        uuid = b"SYNTH_UUID=0\0" if synthetic else b""
        self.uevent(f"add@/devices/{name}\0SUBSYSTEM=pci\0MODALIAS={alias}\0".encode() + uuid)

    def unplug(self, name: str = "0000:01:00.0") -> None:
        """The device disappears."""
        self.uevent(f"remove@/devices/{name}\0SUBSYSTEM=pci\0".encode())

    def uevent(self, datagram: bytes) -> None:
        """The kernel sends this uevent."""
        self.handle(UeventReceived(uevent.parse(datagram)))

    def module_event(self, action: str, name: str) -> None:
        """The kernel tells that a module was added or removed."""
        self.uevent(f"{action}@/module/{name}\0SUBSYSTEM=module\0".encode())

    def replay_device(self, alias: str, name: str) -> None:
        """A replay of sysfs finds this device."""
        self.handle(DevicesFound((device(alias, name),), "all"))

    def finish_boot(self) -> None:
        """All devices of the boot are answered."""
        self.handle(BootFinished())

    def lose_uevents(self) -> None:
        """The kernel drops uevents."""
        self.handle(UeventsLost())

    def replay(self, *aliases: str, cause: Replay | None = "all") -> None:
        """sysfs is read and has devices with these modaliases; `cause` None: it is coldplug."""
        found = [device(alias, f"replayed{number}") for number, alias in enumerate(aliases)]
        self.handle(DevicesFound(tuple(found), cause))

    def boot_list(self, *names: str) -> None:
        """The boot list has these modules."""
        modules = tuple(BootModule(name, Where("/etc/modules", number)) for number, name in enumerate(names, 1))
        self.handle(BootListRead(BootList(modules)))

    def order(self, text: str, *params: str) -> Request:
        """An operator asks for a module."""
        return self._request(Request(text, "operator", params=params))

    def order_removal(self, text: str, options: RemovalOptions = RemovalOptions()) -> Request:  # noqa: B008
        """An operator asks for a module to be removed."""
        return self._request(Request(text, "operator", removing=options))

    def ask(self, text: str, *, pid: int = 812, uid: int = 1000) -> Request:
        """The kernel asks for a module because of a process."""
        return self._request(Request(text, "request", requester=requester(pid, uid)))

    @staticmethod
    def request(text: str, origin: Origin = "operator") -> Request:
        """A request that is not queued yet."""
        return Request(text, origin)

    def queue(self, request: Request) -> None:
        """This request arrives."""
        self.handle(Requested(request))

    def _request(self, request: Request) -> Request:
        self.handle(Requested(request))
        return request

    def seal(self, sealed: bool = True) -> None:
        """Set or remove the seal."""
        self.handle(SealRequested(sealed))

    def reload(self) -> None:
        """Read indexes and configuration again."""
        self.handle(ReloadRequested())

    def change_files(self) -> None:
        """The watch reports changed files."""
        self.handle(FilesChanged())

    def advance(self) -> None:
        """Resolve requests until only loaders or time can bring the engine on."""
        self.handle(Advance())
        while self.engine.can_advance(self.now):
            self.handle(Advance())

    def pass_time(self, seconds: float) -> None:
        """Let time pass, then do what is due."""
        self.now += seconds
        self.handle(Tick())
        self.advance()

    # -- loaders -----------------------------------------------------------------------------------------------

    @property
    def loaders(self) -> list[tuple[int | None, Loader]]:
        """Loaders with their batches, as the dispatcher gives them."""
        with socket.socket() as closed:
            return [(batch.number, Loader(closed, pid=batch.pid)) for batch in self.started.values()]

    @property
    def loading(self) -> list[str]:
        """The modules that loaders are at, one for each batch."""
        return [batch.module for batch in self.started.values()]

    def batch(self, module: str) -> StartedBatch:
        """The batch whose current step is for `module`."""
        return next(batch for batch in self.started.values() if batch.module == module)

    def finish(self, module: str, errno: int = 0, *, stage: Stage = "kernel", detail: str = "", usec: int = 7) -> None:
        """The loader's current step has ended, with this errno; a module without one is live from then on."""
        batch = self.batch(module)
        step = batch.steps.pop(0)
        self.calls.append(module)
        if not errno and isinstance(step, Insmod):
            self.add_live(module)
        elif not errno and isinstance(step, Rmmod):
            self.remove_live(module)
        if errno or not batch.steps:
            del self.started[batch.number]
        self.handle(LoaderReplied(batch.number, Reply(errno, stage, usec, detail)))
        if batch.is_stopping and batch.number in self.started:
            del self.started[batch.number]
            self.handle(LoaderReplied(batch.number, Reply(125, "none", 0)))  # ECANCELED

    def remove_live(self, name: str) -> None:
        """The kernel does not have this module any more."""
        path = self.root / "proc/modules"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if not line.startswith(f"{name} ")))

    def die(self, module: str, *, begun: bool = True, kernel_log: tuple[KernelLine, ...] = ()) -> None:
        """The loader has ended at this step; after an oops /proc/modules has the module as `Loading` (see oops)."""
        batch = self.batch(module)
        del self.started[batch.number]
        if begun:
            self.calls.append(module)
        self.handle(LoaderDied(batch.number, begun, kernel_log))

    def crash(self, module: str, *, kernel_log: tuple[KernelLine, ...] = ()) -> None:
        """The init of the module oopses: the kernel keeps its name, the loader is gone."""
        with (self.root / "proc/modules").open("a") as file:
            file.write(f"{module} 1 1 - Loading 0x0\n")
        self.die(module, kernel_log=kernel_log)

    def answer_stack(self, *frames: str) -> None:
        """The oldest question for a stack is answered."""
        self.handle(StackRead(self.stacks.pop(0).batch, frames))

    def skip(self, module: str) -> None:
        """The loader does not begin this step, and ends the batch: it was stopped, or the module is live."""
        batch = self.batch(module)
        del self.started[batch.number]
        self.handle(LoaderReplied(batch.number, Reply(125, "none", 0)))  # ECANCELED

    def hang(self, module: str, *, is_live: bool = False) -> None:
        """The step takes 61 seconds and has no stack; `is_live`: what it still waits for is asynchronous work."""
        with (self.root / "proc/modules").open("a") as file:
            file.write(f"{module} 1 1 - {'Live' if is_live else 'Loading'} 0x0\n")
        self.now += 61
        self.handle(Tick())
        self.answer_stack()
        self.handle(Tick())

    def settle(self) -> list[AnyJob]:
        """End all steps, by `refuse`, `oops` and missing files, until nothing is left to do. Returns finished jobs."""
        self.advance()
        while self.started:
            module = self.loading[0]
            step = self.batch(module).steps[0]
            if isinstance(step, Insmod) and not Path(self.tree.real(step.path)).exists():
                self.finish(module, errno.ENOENT, stage="file")
            elif module in self.oops:
                self.crash(module)
            else:
                self.finish(module, self.refuse.get(module, 0))
            self.advance()
        return self.pop_finished()

    # -- what came out -----------------------------------------------------------------------------------------

    def pop_finished(self) -> list[AnyJob]:
        """The jobs that have finished since the last call."""
        finished, self.finished = self.finished, []
        return finished

    def forget(self) -> None:
        """Drop everything that came out so far."""
        for kept in (self.records, self.finished, self.turned_away, self.replays, self.stacks, self.read_ahead):
            kept.clear()

    def told(self) -> list[tuple[str, str]]:
        """(KMODD_MODULE or end of MESSAGE_ID, KMODD_RESULT) of each record since the last call."""
        found = []
        for record in self.records:
            fields = dict(record.fields)
            found.append((fields.get("KMODD_MODULE", record.message_id[-4:]), fields.get("KMODD_RESULT", "")))
        self.records.clear()
        return found

    def told_with_device(self) -> list[tuple[str, str, str]]:
        """(KMODD_MODULE, KMODD_RESULT, name of the device) of each record about a module so far."""
        found = [dict(record.fields) for record in self.records]
        return [
            (fields["KMODD_MODULE"], fields["KMODD_RESULT"], fields["KMODD_DEVPATH"].removeprefix("/devices/"))
            for fields in found
            if "KMODD_MODULE" in fields
        ]

    def ids(self) -> list[str]:
        """MESSAGE_ID of each record since the last call."""
        found = [record.message_id for record in self.records]
        self.records.clear()
        return found


def device(alias: str, name: str) -> Uevent:
    """A device as sysfs has it."""
    return uevent.parse(f"add@/devices/{name}\0SUBSYSTEM=pci\0MODALIAS={alias}\0SYNTH_UUID=0\0".encode())


def requester(pid: int = 812, uid: int = 1000) -> Requester:
    """A process that makes the kernel ask."""
    return Requester(
        pid=pid, comm="asker", exe="/usr/bin/asker", uid=uid, loginuid=uid, cgroup="/", unit="", container=False
    )


def results(jobs: Iterable[AnyJob]) -> list[tuple[str, str]]:
    """(module, result) of each outcome of jobs."""
    return [(outcome.module, outcome.result) for job in jobs for outcome in job.outcomes]
