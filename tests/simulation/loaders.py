"""Loader processes of a simulated machine: each is at one step of one batch, and its messages wait to be read."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from kmodd.engine.events import (
    Event,
    LoaderDied,
    LoaderLook,
    LoaderNamed,
    LoaderReplied,
    LoadersSeen,
    LookAtLoaders,
    StartBatch,
    StartProbe,
)
from kmodd.planning.plan import Insmod, Install, RemovalStep, Rmmod, Step
from kmodd.planning.reply import Reply, Stage
from tests.simulation.files import Files
from tests.simulation.kernel import Call, Kernel

FIRST_PID = 4001


@dataclass(frozen=True)
class Probe:
    """The one step of a loader that binds a device again."""

    device: str

    @property
    def module(self) -> str:
        """What stands for it in a line."""
        return f"probe:{self.device}"


@dataclass(eq=False)
class Loader:
    """A loader with a batch."""

    pid: int
    batch: int
    steps: list[Step | RemovalStep | Probe]
    """What is left, the current step first."""
    call: Call | None = None
    """The current step's, where it has not returned."""
    is_begun: bool = False
    """The current step has begun."""
    has_done: int = 0
    """Number of steps that have ended."""
    is_stopping: bool = False
    is_orphan: bool = False
    """The daemon that started it is gone."""
    outbox: list[Event] = field(default_factory=list)
    """Messages that the daemon has not read."""
    is_over: bool = False
    ticks: int = 0
    """Its processor time when it was looked at last."""
    is_killed: bool = False
    """It ends without an answer once its call returns; in an init, no process ends before."""

    @property
    def module(self) -> str:
        """The module of the current step; empty: the batch is over."""
        return "" if self.is_over else self.steps[0].module


class Loaders:
    """All loaders that have or had a batch."""

    def __init__(self, kernel: Kernel, files: Files) -> None:
        self.kernel = kernel
        self.files = files
        self.all: list[Loader] = []
        self.why_not = ""
        """Why none can be started; empty: one can."""
        self.names_late = False
        """Loaders tell their process number with their first message."""
        self.stops_late = False
        """A request to stop comes after the loader has begun the next step, if it can."""
        self.is_short = False
        """They have no memory to unpack a module."""
        self._pid = FIRST_PID

    def start(self, command: StartBatch | StartProbe) -> list[Event]:
        """Give a batch or a probe to a new loader. Returns what the daemon knows at once."""
        steps = command.steps if isinstance(command, StartBatch) else (Probe(command.device),)
        loader = Loader(self._pid, command.batch, list(steps))
        self._pid += 1
        self.all.append(loader)
        named = LoaderNamed(loader.batch, loader.pid)
        if self.names_late:
            loader.outbox.append(named)
            return []
        return [named]

    def stop(self, batch: int, now: float) -> None:
        """Have a loader end after the current step."""
        for loader in self.all:
            if loader.batch != batch or loader.is_orphan or loader.is_stopping:
                continue
            if self.stops_late and self.finish(loader, now):
                self.begin(loader, now)
            loader.is_stopping = True

    def look(self, command: LookAtLoaders) -> LoadersSeen:
        """What the tasks of some loaders do; a loader whose batch is over waits for another one."""
        wanted = dict(command.loaders)
        looks = []
        for loader in self.all:
            if not loader.is_orphan and wanted.get(loader.batch) == loader.pid:
                is_asleep = loader.is_over or self._is_asleep(loader)
                loader.ticks += not is_asleep or self._takes_turns(loader)
                looks.append(LoaderLook(loader.batch, is_asleep, loader.ticks))
        return LoadersSeen(tuple(looks))

    def _is_asleep(self, loader: Loader) -> bool:
        if (call := loader.call) is None:
            return False
        init = self.kernel.init(call.module)
        return bool(call.waits_for) or call.is_blocked or init.ends in ("hangs", "waits") or init.pace != "runs"

    def _takes_turns(self, loader: Loader) -> bool:
        call = loader.call
        return (
            call is not None
            and not (call.waits_for or call.is_blocked)
            and self.kernel.init(call.module).pace == "turns"
        )

    def busy(self) -> list[Loader]:
        """The loaders whose batch is not over."""
        return [loader for loader in self.all if not loader.is_over]

    def at(self, module: str) -> Loader | None:
        """The first loader whose current step is for `module`."""
        return next((loader for loader in self.all if loader.module == module), None)

    def messages(self) -> list[Event]:
        """Take what the loaders have sent to the daemon."""
        found = []
        for loader in self.all:
            found += loader.outbox
            loader.outbox.clear()
        self.all = [loader for loader in self.all if not loader.is_over]
        return found

    def orphan(self) -> None:
        """The daemon is gone: each loader ends after its current step, and its messages are lost."""
        for loader in self.all:
            loader.is_orphan = loader.is_stopping = True
            loader.outbox.clear()
            if not loader.is_begun:
                loader.is_over = True
        self.all = [loader for loader in self.all if not loader.is_over]

    # -- steps -------------------------------------------------------------------------------------------------

    def begin(self, loader: Loader, now: float) -> None:
        """The loader begins its current step, if it has not yet."""
        if loader.is_over or loader.is_begun:
            return
        step = loader.steps[0]
        if loader.has_done and (loader.is_stopping or step.module in self.kernel.modules):
            self._reply(loader, errno.ECANCELED, "none")
            return
        loader.is_begun = True
        if isinstance(step, Insmod):
            if self.files.is_hidden or step.module in self.files.missing:
                self._reply(loader, errno.ENOENT, "file")
                return
            if self.is_short:
                self._reply(loader, errno.ENOMEM, "file")
                return
            self._called(loader, self.kernel.load(step.module, loader.pid, now))
        elif isinstance(step, Rmmod):
            self._called(loader, self.kernel.remove(step.module, loader.pid))

    def _called(self, loader: Loader, result: Call | int) -> None:
        if isinstance(result, Call):
            loader.call = result
        else:
            self._reply(loader, result, "kernel")

    def finish(self, loader: Loader, now: float) -> bool:
        """Have the current step end if it can, by what the init does. Returns whether anything has changed."""
        was_begun = loader.is_begun
        self.begin(loader, now)
        if loader.is_over or not loader.is_begun:
            return True
        call = loader.call
        if call is None:
            self._run_command(loader)
            return True
        if (code := self.kernel.settle(call, now)) is not None:
            self._reply(loader, code, "kernel")
            return True
        ends = self.kernel.init(call.module).ends
        in_init = not (call.waits_for or call.removes or call.is_blocked or self.kernel.next_ask(call))
        if in_init and ends == "oopses" and self.kernel.state(call.module) == "coming":
            self.kernel.crash(call)
            self.die(loader)
            return True
        if in_init and self.kernel.waits_for_work(call):
            self.kernel.go_live(call)
        if not self.kernel.can_finish(call):
            return not was_begun
        code = self.kernel.finish(call)
        self._reply(loader, code, "kernel")
        return True

    def _run_command(self, loader: Loader) -> None:
        """An install command loads its module (but /bin/true), a remove command removes it, if the init allows that."""
        step = loader.steps[0]
        if isinstance(step, Probe):
            self._probe(step)
            self._reply(loader, 0, "kernel")
            return
        init = self.kernel.init(step.module)
        if init.errno or init.ends != "returns":
            self._reply(loader, errno.EINVAL, "command", "exit 1")
            return
        if isinstance(step, Install) and step.command != "/bin/true":
            self.kernel.set_live(step.module)
            if self.kernel.state(step.module) != "live":
                self._reply(loader, errno.EINVAL, "command", "exit 1")
                return
        elif not isinstance(step, Install) and isinstance(call := self.kernel.remove(step.module, loader.pid), Call):
            self.kernel.finish(call)
        self._reply(loader, 0, "command")

    def _probe(self, step: Probe) -> None:
        name = self.kernel.lacks.get(step.device, "")
        self.kernel.probe(step.device, name, exists=not name or name in self.files.firmware)

    def _reply(self, loader: Loader, code: int, stage: Stage, detail: str = "") -> None:
        if loader.is_killed:
            self.die(loader)
            return
        loader.call = None
        is_last = len(loader.steps) == 1
        loader.is_begun = False
        if code or is_last or loader.is_orphan:
            loader.is_over = True
        else:
            loader.steps.pop(0)
            loader.has_done += 1
        if not loader.is_orphan:
            loader.outbox.append(LoaderReplied(loader.batch, Reply(code, stage, 7, detail)))

    def die(self, loader: Loader) -> None:
        """The loader ends without an answer."""
        begun = loader.is_begun or loader.has_done > 0
        loader.is_over, loader.call = True, None
        if not loader.is_orphan:
            loader.outbox.append(LoaderDied(loader.batch, begun))

    def kill(self, loader: Loader, *, ends_init: bool) -> None:
        """The loader is killed. `ends_init`: the init that it is in fails with EINTR; else it goes on to its end."""
        if loader.is_begun and isinstance(step := loader.steps[0], Probe):
            self._probe(step)  # the write to drivers_probe ends before its process does
        if loader.call and not self.kernel.kill(loader.call, ends_init=ends_init):
            loader.is_killed = True
        else:
            self.die(loader)
