"""The daemon: a single-threaded event loop over all file descriptors.

The loop reads, has the engine handle events, and carries out its commands. It never loads, and never waits for a
module, a caller or journald, but for 5 ms at most for the name that the kernel's helper is about to send
(host/helper_socket.py), and for less than a second for the helpers' requesters (host/requesters.py). The kernel's
socket is always emptied before anything is resolved, whatever a module does.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import time

from kmodd.daemon import policy_marks, status
from kmodd.daemon.control_handler import Actions, ControlHandler
from kmodd.daemon.dispatcher import Dispatcher
from kmodd.daemon.file_changes import FileChanges
from kmodd.daemon.helper_processes import HelperProcesses
from kmodd.daemon.kernel_requests import KernelRequests
from kmodd.daemon.options import DaemonOptions
from kmodd.daemon.poller import Poller
from kmodd.daemon.quarantine_file import QuarantineFile
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
    PolicyMarks,
    ReadAhead,
    ReloadRequested,
    ReplayDevices,
    Requested,
    StartBatch,
    Started,
    StartProbe,
    StopBatch,
    TurnAway,
    UeventReceived,
    UeventsLost,
)
from kmodd.errors import Problem, assert_never
from kmodd.host import coldplug
from kmodd.host.config_files import read_boot_list, settings_directories
from kmodd.host.file_watch import Watch
from kmodd.host.helper_socket import REQUEST_SOCKET, RequestSocket, is_helper_set
from kmodd.host.journal import Journal
from kmodd.host.kmsg_reader import KernelMessages
from kmodd.host.machine import HostMachine
from kmodd.host.module_reader import read_ahead
from kmodd.host.netlink import KernelEvents, Overrun, Refused
from kmodd.host.regular_files import read_file
from kmodd.host.requesters import Requesters
from kmodd.host.sd_notify import Notify
from kmodd.host.tree import Tree
from kmodd.host.varlink_server import Connection, ControlSocket
from kmodd.kernel.firmware import WORD as FIRMWARE_WORD
from kmodd.kernel.kmsg import KernelLine
from kmodd.kernel.uevent import Uevent
from kmodd.loader.kernel_stack import StackQuestion
from kmodd.loader.pool import Loader, LoaderPool, reap
from kmodd.planning.record import BAD_INPUT, INFO, RELOADED, STARTED, WARNING, Record
from kmodd.state.quarantine import Quarantine
from kmodd.text import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TypeVar

    _Source = TypeVar("_Source")

MAX_UEVENTS = 1024
"""Datagrams read at once; only when fewer came is the socket empty."""

MAX_WARNINGS = 256
"""Number of warnings that are remembered, so that each is logged once."""

LOOK_AGAIN = 5.0
"""Seconds between looks for what cannot wake the loop: a missing module tree, a journald that does not read."""


def _or_none(opens: Callable[[], _Source]) -> _Source | None:
    """What `opens` gives; None where this kernel or sandbox does not have it."""
    try:
        return opens()
    except (OSError, ImportError):
        return None


class Daemon:
    """One for each machine. `run` returns when a signal says so."""

    def __init__(
        self, tree: Tree, journal: Journal, notify: Notify, options: DaemonOptions, helpers: HelperProcesses
    ) -> None:
        """Open the kernel's sockets and the control socket first, so that nothing is missed.

        helpers: systemd's, if they were asked for already. Raises OSError, ImportError.
        """
        self._tree = tree
        self._journal = journal
        self._notify = notify
        self._options = options
        self._signals, self._wakeup = socket.socketpair()
        self._signals.setblocking(False)
        self._wakeup.setblocking(False)
        self._uevents = KernelEvents(options.receive_buffer)
        self._control = ControlSocket(options.control_path)
        if options.spawn_loaders and not options.dry_run:
            helpers = HelperProcesses.of_ours(tree.root, answers_kernel=options.run)
        self._requesters = helpers.requesters
        self._pool = LoaderPool(helpers.spawner)
        self._kernel_log: KernelMessages | None = _or_none(KernelMessages)
        self._dispatcher = Dispatcher(self._pool, tree.real, self._latest_kernel_log)
        self._quarantine_file = QuarantineFile(root=tree.root, warn=self._warn_once) if options.run else None
        quarantine = self._quarantine_file.read() if self._quarantine_file else Quarantine()
        marks = policy_marks.read_marks() if options.run else PolicyMarks()
        self._uuid = "-".join(os.urandom(size).hex() for size in (4, 2, 2, 2, 6))
        self._machine = HostMachine(tree)
        self._engine = Engine(
            self._machine, marks, quarantine, uuid=self._uuid, dry_run=options.dry_run, expects_watch=True
        )
        self._engine.set_log_level(options.log_level)
        if helpers.spawner and helpers.spawner.pid:
            from kmodd.loader import capabilities  # under systemd the unit does this

            capabilities.drop(frozenset())
        now = time.monotonic()
        self._report = status.StatusReport(tree, self._engine, dry_run=options.dry_run, since=now)
        actions = Actions(self._handle, self._reload, self._status)
        self._control_handler = ControlHandler(self._engine, self._control, actions, tree.root)
        self._kernel: KernelRequests | None = None
        self._poller = Poller()
        self._startup = Startup()
        self._file_changes = FileChanges(now)
        self._round_actions = self._actions_of_a_round()
        self._watched: set[str] = set()
        """Directories that are watched, or could not be."""
        self._waited: set[str] = set()
        """Directories in which a missing module or firmware file may appear."""
        self._warned: set[str] = set()
        self._socket_empty = False
        self._seqnum = 0
        """The highest number of a uevent so far."""
        self._is_stopping = False

    def _actions_of_a_round(self) -> RoundActions:
        return RoundActions(
            handle=self._handle,
            pop_changes=self._file_changes.pop,
            watch_files=lambda: self._watch_files(again=True),
            report_ready=self._report_ready,
            open_trace=self._open_late_trace,
            open_watch=self._open_watch,
            settle=self._settle,
        )

    # -- the loop ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Boot list, READY, coldplug, then events until SIGTERM or SIGINT; SIGHUP reads everything again."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup.fileno())
        self._poller.add(self._signals)
        self._poller.add(self._control)
        self._start()
        while not self._is_stopping:
            for source, can_write in self._wait():
                self._on_ready(source, can_write)
            self._round()
        self._close()

    def _round(self) -> None:
        """Handle what was read, then all that is due."""
        now = time.monotonic()
        self._control_handler.handle_call()
        if not self._socket_empty or self._poller.is_paused(self._uevents):
            self._receive()
        go_round(self._engine, self._startup, self._round_actions, now)
        self._keep_spare_loader()
        self._watch_files()
        if self._quarantine_file:
            self._quarantine_file.write(self._engine.state.quarantine)
        self._control_handler.expire()
        if self._requesters and (why := self._requesters.check(now)):
            self._warn_once(why)
        self._journal.flush()
        self._report.show(self._notify, now)
        self._notify.alive(now)

    def _wait(self) -> list[tuple[Any, bool]]:
        """Wait until something can be read or written, or is due. Returns the sources, each with whether to write."""
        now = time.monotonic()
        kernel = (self._uevents, self._kernel_log) if self._kernel_log else (self._uevents,)
        return self._poller.wait(kernel, self._dispatcher.sources, self._control.connections, now, self._timeout(now))

    def _timeout(self, now: float) -> float:
        """Seconds that the loop may sleep."""
        late = self._startup.can_open(now, devices_answered=self._engine.devices_answered)
        late = late or (self._kernel is not None and self._kernel.needs_trace and self._startup.phase == "late_opens")
        if self._engine.can_advance(now) or not self._socket_empty or late:
            return 0.0
        waits = [self._notify.watchdog_interval or 3600.0]
        if self._engine.state.system.no_tree:
            waits.append(LOOK_AGAIN)
        if (pause := self._journal.flush()) is not None:
            waits.append(pause)
        sources = (self._engine.deadline(now), self._control_handler.deadline(now))
        reader = self._requesters.deadline(now) if self._requesters else None
        deadlines = (*sources, self._startup.deadline(), self._file_changes.deadline(), reader)
        return min((*waits, *(deadline - now for deadline in deadlines if deadline is not None)))

    def _on_ready(self, source: object, can_write: bool) -> None:
        """Read from a source, or write what it did not take before."""
        match source:
            case KernelEvents():
                self._receive()
            case Loader():
                self._handle_all(self._dispatcher.on_loader(source))
            case StackQuestion():
                self._handle_all(self._dispatcher.on_stack(source))
            case KernelMessages():
                self._poller.pause(source, time.monotonic())
                if lines := source.read(FIRMWARE_WORD):
                    self._handle(KernelLogged(tuple(lines)))
            case Watch():
                self._file_changes.on_readable(time.monotonic())
            case KernelRequests():
                for request in source.receive():
                    self._handle(Requested(request))
            case Requesters():
                source.receive()
            case ControlSocket():
                self._control.accept()
            case Connection() if can_write:
                self._control.send_rest(source)
            case Connection():
                self._control.receive(source)
            case _:
                self._on_signal()

    def _on_signal(self) -> None:
        for number in set(self._signals.recv(4096)):  # a hundred SIGHUPs are one reload
            match number:
                case signal.SIGHUP:
                    self._reload()
                case signal.SIGCHLD:
                    reap()
                case _:
                    self._is_stopping = True

    def _receive(self) -> int:
        """Read what the kernel sent, at most MAX_UEVENTS datagrams. Returns their number."""
        received = 0
        lost = False
        for datagram in self._uevents.receive(MAX_UEVENTS):
            received += 1
            match datagram:
                case Uevent():
                    self._seqnum = max(self._seqnum, datagram.seqnum)
                    self._handle(UeventReceived(datagram))
                case Overrun():
                    lost = True
                case Refused(why):
                    self._journal.write(Record(BAD_INPUT, WARNING, f"Ignoring invalid uevent: {why}"))
        if lost:
            self._handle(UeventsLost())
        self._socket_empty = received < MAX_UEVENTS
        self._poller.resume(self._uevents)
        if received and self._engine.state.is_full():  # nothing could be done for further ones now
            self._poller.pause(self._uevents, time.monotonic())
        return received

    # -- the engine --------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        """Have the engine handle an event, and carry out its commands."""
        for command in self._engine.handle(event, time.monotonic()):
            self._handle_all(self._execute(command))

    def _handle_all(self, events: Sequence[Event]) -> None:
        for event in events:
            self._handle(event)

    def _execute(self, command: Command) -> Sequence[Event]:
        """Carry out a command. Returns the events that it causes at once."""
        match command:
            case StartBatch() | StartProbe() | StopBatch() | AskStack() | DropStack() | LookAtLoaders():
                return self._dispatcher.execute(command)
            case ReadAhead(paths, devices):
                self._machine.read_names(devices)
                for path in paths:
                    read_ahead(self._tree.real(path), self._tree.trees)
            case Log(record):
                self._journal.write(record)
                self._control_handler.logged(command)
            case Finish(job):
                self._report.finished(job, time.monotonic())
                self._control_handler.finished(job)
                if self._kernel:
                    self._kernel.finished(job)
            case TurnAway(request, why):
                if not self._control_handler.turned_away(request, why) and self._kernel:
                    self._kernel.turned_away(request, why)
            case ReplayDevices(replay):
                if replay == "drift":
                    self._handle(DevicesFound(tuple(coldplug.replay(self._tree.root, unbound=True)), replay))
                else:
                    self._handle(DevicesFound(self._all_devices(), replay))
                    self._ask_devices()
            case MarkPolicy(marks, spent):
                for message in policy_marks.write_marks(marks, spent) if self._options.run else ():
                    self._warn_once(message)
            case _:
                assert_never(command)
        return ()

    def _latest_kernel_log(self) -> tuple[KernelLine, ...]:
        """The latest lines of the kernel log: what it said before a loader died."""
        if self._kernel_log is None:
            return ()
        self._kernel_log.catch_up()
        return self._kernel_log.last()

    def _warn_once(self, message: str) -> None:
        """Write a warning, the first time only."""
        if message not in self._warned:
            if len(self._warned) >= MAX_WARNINGS:
                self._warned.clear()
            self._warned.add(message)
            self._journal.write(Record(BAD_INPUT, WARNING, message))

    # -- start and end -----------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._handle(Started())
        if not self._options.dry_run:
            self._pool.keep_spare(self._engine.state.system.settings.steady_lanes)  # the spawner has started meanwhile
        self._answer_kernel()
        self._handle(BootListRead(read_boot_list(self._tree.root)))
        self._ready_text = "; ".join((self._report.greeting(), *self._lacks()))
        self._journal.write(Record(STARTED, INFO, self._ready_text, self._report.greeting_fields()))
        begin(self._engine, self._startup, self._round_actions, time.monotonic())
        self._handle(DevicesFound(self._all_devices()))  # without a boot list READY has not waited for it
        self._ask_devices()

    def _answer_kernel(self) -> None:
        """Answer the kernel's own requests from now on, if this daemon is to."""
        if not self._options.run or not self._engine.state.system.settings.kernel_requests:
            if self._requesters:
                self._requesters.close()
            return
        try:
            self._kernel = KernelRequests(RequestSocket(), requesters=self._requesters)
        except OSError as error:
            path = error.filename or REQUEST_SOCKET
            self._warn_once(f"Failed to open {path}: {error.strerror}; the kernel's own requests are not answered")
            if self._requesters:
                self._requesters.close()
            return
        if self._engine.state.policy.is_enforced and is_helper_set():
            self._warn_of(self._kernel.open_trace())  # the kernel asks already: after a crash, or with the package
        self._poller.add(self._kernel)
        if self._requesters:
            self._poller.add(self._requesters)

    def _report_ready(self) -> None:
        """The boot list is answered, or cannot be."""
        if self._engine.state.policy.is_enforced and self._kernel:
            # before the helper is set: requests of unknown processes would be refused
            self._warn_of(self._kernel.open_trace())
        self._notify.ready(self._ready_text)

    def _open_late_trace(self) -> bool:
        """Open a trace that is not open yet. Returns whether one was needed."""
        if self._kernel is None or not self._kernel.needs_trace:
            return False
        self._warn_of(self._kernel.open_late())
        return True

    def _warn_of(self, why: str) -> None:
        if why:
            self._warn_once(why)

    def _open_watch(self, now: float) -> None:
        gc.freeze()
        gc.enable()  # off since the start: nothing of imports and indexes, which are read after READY, is garbage
        if self._options.run:
            from kmodd.host import stream_sockets  # only here: ctypes takes time

            if why := stream_sockets.forbid():
                self._warn_once(why)
        watch = self._file_changes.open(now)
        if watch is None:
            self._warn_once(status.NO_WATCH)
        else:
            self._machine.set_watch(watch)
            self._poller.add(watch)
            self._watch_files(again=True)

    def _close(self) -> None:
        self._notify.stopping()
        self._control.close()
        if self._kernel:
            self._kernel.close()
        if self._requesters:
            self._requesters.close()
        self._dispatcher.close()
        if self._quarantine_file:
            self._quarantine_file.write(self._engine.state.quarantine)
        self._uevents.close()
        if self._kernel_log is not None:
            self._kernel_log.close()
        self._file_changes.close()
        for each in (self._journal, self._signals, self._wakeup, self._poller):
            each.close()

    # -- what is done now and then -----------------------------------------------------------------------------

    def _reload(self) -> Sequence[Problem]:
        """Read configuration and changed indexes; notify the service manager at the beginning and the end."""
        self._notify.reloading()
        self._handle(ReloadRequested())
        self._handle(BootListRead(read_boot_list(self._tree.root)))
        problems, no_tree = self._engine.problems, self._engine.state.system.no_tree
        message = f"Read indexes and configuration again; {count_of(len(problems), 'line')} could not be used"
        if not no_tree:
            self._journal.write(Record(RELOADED, INFO, message))
        self._notify.ready(no_tree or message)
        return problems

    def _status(self) -> dict[str, Any]:
        loaders, now = self._dispatcher.loaders, time.monotonic()
        return self._report.reply(loaders, self._lacks(), self._journal.lost, now, self._control.dropped)

    def _lacks(self) -> list[str]:
        has_modules = self._options.dry_run or read_file(f"{self._tree.root}/proc/modules") is not None
        has_watch, has_log = self._engine.state.system.is_watched, self._kernel_log is not None
        lacks = status.lacks(modules=has_modules, watch=has_watch, log=has_log, buffer=self._uevents.buffer_forced)
        problems = [source.problem for source in (self._quarantine_file, self._requesters) if source]
        return [*lacks, *filter(None, problems)]

    def _all_devices(self) -> tuple[Uevent, ...]:
        return *coldplug.replay(self._tree.root), *coldplug.modules(self._tree.root)

    def _ask_devices(self) -> None:
        """Have devices without a modalias file send their uevent; a dry run leaves everything alone."""
        for error in () if self._options.dry_run else coldplug.trigger(self._tree.root, self._uuid):
            path = error.filename or "a uevent file"
            self._warn_once(f"Failed to write {path}: {error.strerror}; aliases of devices there are not known")

    def _settle(self) -> None:
        """Answer `Settle` calls if everything is answered."""
        if not self._engine.devices_settled:
            return
        # Loading makes devices appear: their uevents are read before callers are told.
        received = self._receive()
        if self._engine.devices_settled:
            self._control_handler.settled(self._seqnum if received else None, self._file_changes.unread_since)

    def _keep_spare_loader(self) -> None:
        """Keep a loader in reserve, also while one is at work: its module's init may make the kernel ask for more.

        While that request has the reserve, a fork would only take time from both.
        """
        self._pool.resize(self._engine.idle_loaders)
        is_ready = self._startup.phase != "boot_list"
        if is_ready and not self._options.dry_run and not self._engine.state.in_flight.interactive():
            self._pool.keep_spare()

    def _watch_files(self, *, again: bool = False) -> None:
        """Watch the directories of indexes, configuration and missing files. `again`: some may be new."""
        state = self._engine.state
        waited = {os.path.dirname(self._tree.real(path)) for path in state.retries.missing_paths()}
        waited.update(state.firmware.directories)
        if not again and waited == self._waited:
            return
        directories = (*self._tree.directories(), *settings_directories(self._tree.root), *sorted(waited))
        is_new = not self._watched.issuperset(directories)
        self._watched, self._waited = set(directories), waited
        for error in self._file_changes.watch_directories(directories):
            self._warn_once(f"Failed to watch {error.filename}: {error.strerror}; changes there are noticed late")
        if is_new:
            self._file_changes.count_change(time.monotonic())  # the file may have appeared before the watch was set
