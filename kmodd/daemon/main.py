"""The daemon: one loop around everything that can speak up.

The loop never loads, and never waits for a module, a caller or journald, but for 5 ms at the most for the name that the
kernel's helper is about to send (host/helper_socket.py). The kernel's socket is always emptied before anything is
resolved, whatever a module does.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import time

from kmodd.daemon.control_handler import ControlHandler
from kmodd.daemon.engine import Engine
from kmodd.daemon.firmware_retry import FirmwareRetry
from kmodd.daemon.kernel_requests import KernelRequests
from kmodd.daemon.poller import Poller
from kmodd.daemon.quarantine_file import QuarantineFile
from kmodd.dataclass import dataclass
from kmodd.host import coldplug, netlink
from kmodd.host.config_files import read_boot_list, settings_directories
from kmodd.host.file_watch import Watch
from kmodd.host.helper_socket import HELPER_IS_SET, REQUEST_SOCKET, RequestSocket
from kmodd.host.journal import Journal
from kmodd.host.kmsg_reader import KernelMessages
from kmodd.host.netlink import KernelEvents, Overrun, Refused
from kmodd.host.paths import CONTROL_SOCKET
from kmodd.host.sd_notify import Notify
from kmodd.host.tree import Tree, read_file
from kmodd.host.varlink_server import Connection, ControlSocket
from kmodd.kernel.firmware import WORD as FIRMWARE_WORD
from kmodd.kernel.uevent import Uevent
from kmodd.loader.kernel_stack import StackQuestion
from kmodd.loader.pool import Loader, LoaderPool, reap
from kmodd.loader.spawner import Spawner
from kmodd.planning.record import BAD_INPUT, INFO, STARTED, WARNING, Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    _Source = TypeVar("_Source")

EVENTS_AT_ONCE = 1024
"""Datagrams read in one go; only when fewer came is the socket empty."""

BOOT_LIST_LIMIT = 20.0
"""Seconds that READY waits for the boot list: whoever is ordered after us counts on it, as on systemd-modules-load."""

SETTLED = 0.1
"""Seconds without a further change after which files that changed are read: depmod replaces a dozen, one by one."""

SETTLED_AT_LAST = 0.5
"""Seconds after which they are read though more changes come."""

WATCH_LIMIT = 10.0
"""Seconds after READY when files are watched though not all devices are answered."""

NO_WATCH = "no inotify: new modules and files are noticed with the next event only"

LOOK_AGAIN = 5.0
"""Seconds between looks for what cannot wake the loop: a missing module tree, a journald that does not read."""


def _or_none(opens: Callable[[], _Source]) -> _Source | None:
    """What a kernel or a sandbox may not give: one does with less."""
    try:
        return opens()
    except (OSError, ImportError):
        return None


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """How the daemon was started."""

    dry_run: bool = False
    spawn_loaders: bool = False
    """The daemon starts a spawner; else systemd does."""
    run: bool = False
    """It is the machine's own: it keeps below /run what a later daemon has to know, and answers the kernel."""
    control_path: str = CONTROL_SOCKET
    receive_buffer: int = netlink.RECEIVE_BUFFER
    """Bytes."""


class Daemon:
    """One for each machine. `run` returns when it is told to stop."""

    def __init__(
        self, tree: Tree, journal: Journal, notify: Notify, options: DaemonOptions, spawner: Spawner | None = None
    ) -> None:
        """Opens the kernel's group and the control socket, so nothing falls between. Raises OSError, ImportError.

        `spawner`: systemd's, if it was asked for already.
        """
        self._tree = tree
        self._journal = journal
        self._notify = notify
        self._options = options
        self._signals, wakeup = socket.socketpair()
        self._signals.setblocking(False)
        wakeup.setblocking(False)
        self._wakeup = wakeup
        self._events = KernelEvents(options.receive_buffer)
        self._control = ControlSocket(options.control_path)
        if options.spawn_loaders and not options.dry_run:
            from kmodd.loader.trusted_paths import Trusted  # only here: under systemd the daemon need not have it

            spawner = Spawner.of_ours(Trusted.below(tree.root))
        self._loaders = None if options.dry_run else LoaderPool(spawner)
        self._log: KernelMessages | None = _or_none(KernelMessages)
        self._files: Watch | None = None
        self._missing: tuple[str, ...] = ()
        """Files that were missing when the watch was set."""
        self._changed: tuple[float, float] | None = None
        """When (time.monotonic) watched directories changed, first and last; None: all of that was read."""
        memory = QuarantineFile(root=tree.root) if options.run else None
        self._engine = Engine(tree, journal, self._loaders, self._log, memory)
        self._firmware_retry = FirmwareRetry(tree.root, tree.release, self._engine.report, self._loaders)
        if spawner and spawner.pid:
            from kmodd.loader import capabilities  # under systemd its unit does this

            capabilities.drop(frozenset(("CAP_SYS_PTRACE",)))
        facts = {"release": tree.release, "root": tree.root, "dry_run": options.dry_run}
        self._kernel: KernelRequests | None = None
        self._control_handler = ControlHandler(self._engine, self._control, notify, facts, self._lacks)
        self._poller = Poller()
        self._ready_by: float | None = None
        self._ready_text = ""
        self._opens_trace = options.run
        self._watch_by = 0.0
        """When (time.monotonic) files are watched at the latest."""
        self._engine.view.watch_comes = True
        self._read_at = 0.0
        """When (time.monotonic) files were read that nobody watches yet."""
        self._socket_empty = False
        self._seqnum = 0
        """The highest number that an event has carried so far."""
        self._stopping = False

    def run(self) -> None:
        """Boot list, READY, coldplug, then events until SIGTERM or SIGINT; SIGHUP reads everything again."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup.fileno())
        self._poller.always(self._signals)
        self._poller.always(self._control)
        self._start()
        while not self._stopping:
            self._wait()
            self._go_on()
        self._notify.stopping()
        self._control.close()
        if self._kernel:
            self._kernel.close()
        self._engine.close()
        self._events.close()
        for opened in (self._log, self._files):
            if opened is not None:
                opened.close()
        self._journal.close()
        self._signals.close()
        self._wakeup.close()
        self._poller.close()

    def _start(self) -> None:
        self._read_at = time.monotonic()
        self._engine.reload()
        if self._loaders:
            self._loaders.keep_spare(self._engine.view.settings.lanes)  # the spawner has started meanwhile
        self._engine.others.adopt()
        self._answer_the_kernel()
        self._engine.intake.boot(read_boot_list(self._tree.root))
        self._engine.intake.coldplug(coldplug.replay(self._tree.root))
        dry = " (dry run: nothing is loaded)" if self._options.dry_run else ""
        message = f"kmodd is listening, kernel {self._tree.release}{dry}"
        message = "; ".join((message, *self._lacks()))
        self._engine.report.tell(Record(STARTED, INFO, message))
        self._speak()
        self._ready_text = message
        self._ready_by = time.monotonic() + BOOT_LIST_LIMIT

    def _answer_the_kernel(self) -> None:
        """Take the kernel's own requests from now on, if it is ours to do."""
        if not self._options.run or not self._engine.view.settings.kernel_requests:
            return
        try:
            self._kernel = KernelRequests(self._engine, RequestSocket())
        except OSError as error:
            self._engine.report.complain_once(
                f"{error.filename or REQUEST_SOCKET}: {error.strerror}: the kernel's own requests are not taken"
            )
            return
        if os.path.exists(HELPER_IS_SET):
            self._kernel.open_trace()  # after a crash under an enforced policy the kernel calls already
        self._poller.always(self._kernel)

    def _lacks(self) -> list[str]:
        """What works less well here, in words."""
        has_modules = self._options.dry_run or read_file(f"{self._tree.root}/proc/modules") is not None
        lacks = {
            "no kernel log: a crash is told without the kernel's words (CAP_SYSLOG, /dev/kmsg)": self._log is None,
            NO_WATCH: not self._engine.view.watched,
            "no /proc/modules: each module is given to the kernel to see whether it is there": not has_modules,
            "no CAP_NET_ADMIN: the receive buffer is as small as the system allows": not self._events.buffer_forced,
        }
        return [words for words, is_so in lacks.items() if is_so]

    def _get_ready(self) -> None:
        """READY, once the boot list is answered or can not be."""
        if self._ready_by is None:
            return
        line = self._engine
        if not line.intake.boot_left or line.view.no_tree or time.monotonic() >= self._ready_by:
            self._ready_by, self._watch_by = None, time.monotonic() + WATCH_LIMIT
            self._notify.ready(self._ready_text)
            gc.freeze()
            gc.enable()  # off since the start: nothing of the imports and the indexes is garbage
            if self._engine.guard.mode == "enforce" or self._engine.guard.sealed:
                self._open_late(time.monotonic())  # whoever is not known would be refused

    def _open_late(self, now: float) -> None:
        """What takes long and is not needed for the first load: one thing a round."""
        if not self._is_something_late(now):
            return
        if self._kernel and self._opens_trace:
            self._opens_trace = False
            self._kernel.open_trace()  # the kernel is told of its helper only after READY
        else:
            self._open_watch()

    def _is_something_late(self, now: float) -> bool:
        if self._ready_by is not None:
            return False
        watch = self._engine.view.watch_comes and (self._engine.devices_answered or now >= self._watch_by)
        return watch or (self._kernel is not None and self._opens_trace)

    def _open_watch(self) -> None:
        self._engine.view.watch_comes = False
        self._changed = (self._read_at, time.monotonic())
        self._files = self._engine.view.watch = _or_none(Watch)
        if self._files is None:
            self._engine.report.complain_once(NO_WATCH)
            return
        self._poller.always(self._files)
        self._watch_tree()

    def _speak(self) -> None:
        """Have the devices say their aliases that have no file with them; a dry run leaves everything alone."""
        if self._options.dry_run:
            return
        for error in coldplug.trigger(self._tree.root, self._engine.intake.uuid):
            message = f"{error.filename or 'a uevent file'}: {error.strerror}: devices there are not asked for aliases"
            self._engine.report.complain_once(message)

    def _wait(self) -> None:
        """Wait until something speaks up, and read what it says."""
        now = time.monotonic()
        kernel = (self._events, self._log) if self._log else (self._events,)
        speakers: tuple[Loader | StackQuestion, ...]
        speakers = (*self._engine.scheduler.lanes, *self._firmware_retry.lanes, *self._engine.scheduler.questions)
        spoken = self._poller.wait(kernel, speakers, self._control.connections, now, self._timeout(now))
        for source, can_write in spoken:
            match source:
                case KernelEvents():
                    self._receive()
                case Loader() if source in self._firmware_retry.lanes:
                    self._firmware_retry.heard(source)
                case Loader():
                    self._engine.scheduler.heard(source)
                case StackQuestion():
                    self._engine.scheduler.heard_stack(source)
                case KernelMessages():
                    self._poller.pause(source, time.monotonic())
                    if self._firmware_retry.heard_kernel(source.read(FIRMWARE_WORD)):
                        self._watch_tree()
                        self._firmware_retry.files_may_have_come()  # they may be there since the kernel looked
                case Watch():
                    if source.changed():
                        now = time.monotonic()
                        self._changed = (self._changed[0] if self._changed else now, now)
                case KernelRequests():
                    source.listen()
                case ControlSocket():
                    self._control.accept()
                case Connection() if can_write:
                    self._control.send_rest(source)
                case Connection():
                    self._control.receive(source)
                case _:
                    self._signalled()

    def _go_on(self) -> None:
        """One round of the line, then everything that is due."""
        now = time.monotonic()
        self._control_handler.listen()
        if not self._socket_empty or self._poller.is_paused(self._events):
            self._receive()
        if self._changed is not None and now >= self._read_changes_at():
            self._changed = None
            self._engine.refresh()
            self._engine.files_may_have_come()
            self._firmware_retry.files_may_have_come()
            self._watch_tree()
        self._engine.tick()
        self._firmware_retry.tick()
        self._get_ready()  # before a thousand plans are made that nobody who waits for us waits for
        # Also while events keep coming: each round reads many of them first, and equal ones have become one by then.
        self._engine.advance()
        if not self._engine.can_advance or now >= self._watch_by:  # a lane is to have what comes next before that
            self._open_late(now)
        for job in self._engine.scheduler.take_ended():
            self._control_handler.ended(job)
            if self._kernel:
                self._kernel.ended(job)
        if what := self._engine.intake.takes_replay():
            for event in coldplug.replay(self._tree.root, unbound=what == "drift"):
                self._engine.intake.take(event, "reconcile", drift=what == "drift")
            if what == "all":
                self._speak()
        if self._engine.missing_files() != self._missing:
            self._watch_tree()
        if self._engine.devices_answered:
            self._engine.boot_is_over()
            self._engine.report.end_coldplug()
            self._settle()
        if self._loaders and self._ready_by is None and not self._engine.in_flight.own():
            # Also while one is at work: its module's init may have the kernel ask for more. While that request has the
            # spare, a fork would only take time from both.
            self._loaders.keep_spare()
        self._control_handler.expire()
        self._journal.flush()
        self._notify.alive(now)

    def _settle(self) -> None:
        """Tell those who wait for it that all is quiet, if it is."""
        if self._firmware_retry.lanes or self._engine.others.busy():
            return
        # Loading makes children appear: what they say is read before anybody is told.
        came = self._receive()
        if self._engine.devices_answered:
            unread = self._read_at if self._engine.view.watch_comes else self._changed[0] if self._changed else None
            self._control_handler.settled(self._seqnum if came else None, unread)

    def _receive(self) -> int:
        """Read what the kernel sent, at most EVENTS_AT_ONCE datagrams. The answer: how many."""
        received = 0
        lost = False
        for thing in self._events.receive(EVENTS_AT_ONCE):
            received += 1
            match thing:
                case Uevent():
                    self._seqnum = max(self._seqnum, thing.seqnum)
                    self._engine.intake.take(thing, "uevent")
                case Overrun():
                    lost = True
                case Refused(why):
                    message = f"A uevent is not believed: {why}"
                    self._engine.report.tell(Record(BAD_INPUT, WARNING, message))
        if lost:
            self._engine.intake.events_were_lost()
        self._socket_empty = received < EVENTS_AT_ONCE
        self._poller.no_pause(self._events)
        if received and self._engine.scheduler.is_full():  # nothing could be done for more of them now
            self._poller.pause(self._events, time.monotonic())
        return received

    def _watch_tree(self) -> None:
        """Watch the directories that indexes, configuration and missing files are in, as they are now."""
        self._missing = self._engine.missing_files()
        if self._files is not None:
            missing = {os.path.dirname(path) for path in self._engine.missing_files()} | set(
                self._firmware_retry.directories()
            )
            usual = (*self._tree.directories(), *settings_directories(self._tree.root))
            for error in self._files.set([*usual, *sorted(missing)]):
                self._engine.report.complain_once(f"{error.filename}: cannot be watched for changes: {error.strerror}")

    def _read_changes_at(self) -> float:
        """When (time.monotonic): once all is quiet, or, where it never gets quiet, after a while."""
        first, last = self._changed or (0.0, 0.0)
        return min(last + SETTLED, first + SETTLED_AT_LAST)

    def _signalled(self) -> None:
        for number in set(self._signals.recv(4096)):  # a hundred SIGHUPs are one wish
            match number:
                case signal.SIGHUP:
                    self._control_handler.reload()
                case signal.SIGCHLD:
                    reap()
                case _:
                    self._stopping = True

    def _timeout(self, now: float) -> float:
        """Seconds that the loop may sleep."""
        if (
            self._engine.can_advance
            or not self._socket_empty
            or self._engine.intake.replay_is_due
            or self._control.has_call()
            or self._is_something_late(now)
        ):
            return 0.0
        waits = [self._notify.watchdog_interval or 3600.0]
        if self._engine.view.no_tree:
            waits.append(LOOK_AGAIN)
        if (pause := self._journal.flush()) is not None:
            waits.append(pause)
        changed = self._read_changes_at() if self._changed is not None else None
        watch = self._watch_by if self._engine.view.watch_comes and self._watch_by else None
        deadlines = (
            self._control_handler.next_deadline(), self._engine.next_tick(now), self._firmware_retry.next_tick(),
            self._ready_by,
            changed, watch,
        )  # fmt: skip
        waits += [deadline - now for deadline in deadlines if deadline is not None]
        return min(waits)
