"""The daemon on a simulated machine: the real engine, start-up phases and order of a round (kmodd/daemon/round.py)."""

from __future__ import annotations

import functools
from typing import Protocol

from kmodd.daemon.round import RoundActions, begin, go_round
from kmodd.daemon.startup import Startup
from kmodd.engine.engine import Engine
from kmodd.engine.events import (
    AskStack,
    BootListRead,
    Command,
    DevicesFound,
    DropStack,
    Event,
    Finish,
    KernelLogged,
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
    TurnAway,
    UeventReceived,
    UeventsLost,
)
from kmodd.errors import assert_never
from kmodd.host.journal import RecordQueue
from kmodd.kernel import uevent
from kmodd.kernel.uevent import Uevent
from kmodd.planning.record import DEBUG, Record
from kmodd.planning.request import Request
from kmodd.state import quarantine
from kmodd.state.quarantine import Quarantine
from tests.simulation.files import SimMachine
from tests.simulation.journald import QUEUE, Journald
from tests.simulation.loaders import Loaders
from tests.world import device as device_event

ROUNDS = 400
"""Rounds of Advance in a row after which the engine counts as running in circles."""


@functools.cache
def _parsed(datagram: str) -> Uevent:
    return uevent.parse(datagram.encode())


@functools.cache
def _device(alias: str, name: str) -> Uevent:
    return device_event(alias, name)


class Killed(Exception):
    """The daemon is killed here."""


class Observer(Protocol):
    """Sees what the engine is given and gives back."""

    def before(self, event: Event) -> None:
        """The engine is about to handle an event."""

    def after(self, event: Event, commands: list[Command]) -> None:
        """The engine has handled it, and nothing is carried out yet."""

    def answered(self, request: Request) -> None:
        """A caller got an answer."""

    def logged(self, record: Record) -> None:
        """A record was written."""

    def moved(self, before: str, after: str) -> None:
        """The start-up went from one phase to another."""

    def stuck_in_circle(self) -> None:
        """Advance has more to do after ROUNDS rounds."""


class Run:
    """What outlives the daemon: files and journald's socket below /run."""

    def __init__(self) -> None:
        self.marks = PolicyMarks()
        self.standing = ""
        self.is_full = False
        """Writes fail."""
        self.journald: Journald | None = None
        """What reads journald's socket; None: records go nowhere."""


class SimDaemon:
    """One daemon, from its start to its end."""

    def __init__(self, machine: SimMachine, loaders: Loaders, run: Run, observer: Observer) -> None:
        self._machine = machine
        self._loaders = loaders
        self._run = run
        self._observer = observer
        self.left: int | None = None
        """Number of events until the daemon is killed; None: it is not."""
        self.fails_in: int | None = None
        """Number of events until an allocation fails among the commands of one; None: none fails."""
        self.journal = RecordQueue(run.journald.send, QUEUE) if run.journald else None
        self.has_answered_stacks = True
        """Questions for stacks are answered at once."""
        self.questions: list[int] = []
        self.socket: list[str] = []
        """Uevents that the daemon has not read."""
        self.has_overflowed = False
        self.calls: list[Request] = []
        """Requests of callers that the daemon has not read."""
        self.orders: list[Event] = []
        """Reloads and seals that the daemon has not read."""
        self._lines_read = 0
        self._seen_version = machine.files.version
        self._age = -1
        self._startup = Startup()
        self._phase = self._startup.phase
        self._actions = RoundActions(
            handle=self.handle,
            pop_changes=self._pop_changes,
            watch_files=lambda: None,
            report_ready=self._note_phase,
            open_trace=lambda: False,
            open_watch=self._open_watch,
            settle=lambda: None,
        )
        self._now = 0.0
        machine.has_watch = False
        self.engine = Engine(machine, run.marks, self._read_quarantine(), uuid="ours", expects_watch=True)
        self.engine.set_log_level(DEBUG)

    def _read_quarantine(self) -> Quarantine:
        """As QuarantineFile does."""
        if not self._run.standing:
            return Quarantine()
        found = quarantine.of_text(self._run.standing)
        there = self._machine.kernel.devices
        for path in {device for devices in found.removed.values() for device in devices}:
            if path.rpartition("/")[2] not in there:
                found.leave(path)
        return found

    # -- the loop ----------------------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Read everything, the boot list and sysfs. Raises Killed."""
        self._now = now
        self.handle(Started())
        self.handle(BootListRead(self._machine.files.boot_list()))
        begin(self.engine, self._startup, self._actions, now)
        self.handle(DevicesFound(self._sysfs()))

    def round(self, now: float) -> None:
        """Handle what can be read, then all that is due, until only an event or time can go on. Raises Killed."""
        self._now = now
        self._read()
        for _ in range(ROUNDS):
            self._round()
            if not self.engine.can_advance(now):
                break
        else:
            self._observer.stuck_in_circle()
        deadline = self.engine.deadline(now)
        for _ in range(4):
            if deadline is None or deadline > now or self.engine.can_advance(now):
                return
            self._round()
            deadline = self.engine.deadline(now)
        self._observer.stuck_in_circle()

    def _read(self) -> None:
        self._receive()
        for event in self._loaders.messages():
            self.handle(event)
        for number in self.questions if self.has_answered_stacks else ():
            self.handle(StackRead(number, ("[<0>] msleep+0x2d/0x40",)))
        if self.has_answered_stacks:
            self.questions.clear()
        lines = self._machine.kernel.log
        if len(lines) > self._lines_read:
            new, self._lines_read = tuple(lines[self._lines_read :]), len(lines)
            self.handle(KernelLogged(new))
        for request in self._pop_calls():
            self.handle(Requested(request))
        orders, self.orders = self.orders, []
        for event in orders:
            self.handle(event)
            if isinstance(event, ReloadRequested):
                self.handle(BootListRead(self._machine.files.boot_list()))

    def _pop_calls(self) -> list[Request]:
        calls, self.calls = self.calls, []
        return calls

    def _receive(self) -> None:
        datagrams, self.socket = self.socket, []
        lost, self.has_overflowed = self.has_overflowed, False
        for datagram in datagrams:
            self.handle(UeventReceived(_parsed(datagram)))
        if lost:
            self.handle(UeventsLost())

    def _round(self) -> None:
        go_round(self.engine, self._startup, self._actions, self._now)
        self._note_phase()
        self._write_quarantine()
        if self.journal:
            self.journal.flush()

    def _pop_changes(self, _now: float) -> bool:
        version = self._machine.files.version
        is_changed = self._machine.has_watch and self._seen_version != version
        self._seen_version = version
        return is_changed

    def _open_watch(self, _now: float) -> None:
        self._machine.has_watch = True
        self._seen_version = -1  # as FileChanges.open: all files count as changed since they were read

    def _note_phase(self) -> None:
        before, self._phase = self._phase, self._startup.phase
        self._observer.moved(before, self._phase)

    def _write_quarantine(self) -> None:
        kept = self.engine.state.quarantine
        if kept.age != self._age and not self._run.is_full:
            self._run.standing, self._age = kept.to_text(), kept.age

    def has_unread_log(self) -> bool:
        """Whether the kernel log has lines that the daemon has not read."""
        return len(self._machine.kernel.log) > self._lines_read

    def deadline(self) -> float | None:
        """When the loop wakes up by itself (s)."""
        pause = self.journal.flush() if self.journal else None
        times = (self.engine.deadline(self._now), self._startup.deadline(), pause and self._now + pause)
        return min((each for each in times if each is not None), default=None)

    # -- the engine --------------------------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        """Have the engine handle an event, and carry out its commands. Raises Killed."""
        if self.left is not None:
            if self.left <= 0:
                raise Killed
            self.left -= 1
        self._observer.before(event)
        commands = self.engine.handle(event, self._now)
        self._observer.after(event, commands)
        is_failing = self._fails_now()
        for command in commands[: len(commands) // 2] if is_failing else commands:
            for caused in self._execute(command):
                self.handle(caused)
        if is_failing:
            raise Killed

    def _fails_now(self) -> bool:
        if self.fails_in is None:
            return False
        self.fails_in -= 1
        return self.fails_in < 0

    def _execute(self, command: Command) -> list[Event]:
        match command:
            case StartBatch() | StartProbe():
                if self._loaders.why_not:
                    return [NotStarted(command.batch, self._loaders.why_not)]
                return self._loaders.start(command)
            case StopBatch(batch):
                self._loaders.stop(batch, self._now)
            case AskStack(batch):
                self.questions.append(batch)
            case LookAtLoaders():
                return [self._loaders.look(command)]
            case DropStack(batch):
                self.questions = [each for each in self.questions if each != batch]
            case Log(record):
                self._observer.logged(record)
                if self.journal:
                    self.journal.write(record)
            case Finish(job):
                self._observer.answered(job.plan.request)
            case TurnAway(request):
                self._observer.answered(request)
            case ReplayDevices(replay):
                self.handle(DevicesFound(self._sysfs(replay), replay))
            case MarkPolicy(marks):
                if not self._run.is_full:
                    self._run.marks = marks
            case ReadAhead():
                pass
            case _:
                assert_never(command)
        return []

    def _sysfs(self, replay: Replay | None = None) -> tuple[uevent.Uevent, ...]:
        """The devices of sysfs; for drift those without a live driver."""
        kernel, files = self._machine.kernel, self._machine.files
        found = []
        for name, alias in kernel.devices.items():
            drivers = files.matches(alias)
            is_bound = any(kernel.state(each) == "live" for each in drivers)
            if replay != "drift" or not is_bound:
                found.append(_device(alias, name))
        return tuple(found)

    def tell(self, order: str) -> None:
        """An administrator reloads, or sets or removes the seal."""
        self.orders.append(ReloadRequested() if order == "reload" else SealRequested(order == "seal"))
