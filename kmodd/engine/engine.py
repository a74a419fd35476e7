"""The engine: a function from events to commands over one state. It knows no socket, no thread and no clock."""

from __future__ import annotations

from kmodd.engine import timeouts
from kmodd.engine.batch import Batch
from kmodd.engine.events import (
    Advance,
    AnyJob,
    AskStack,
    BootFinished,
    BootListRead,
    CheckFiles,
    Command,
    DevicesFound,
    DropStack,
    Event,
    FilesChanged,
    KernelLogged,
    LoaderDied,
    LoaderNamed,
    LoaderReplied,
    LoadersSeen,
    NotStarted,
    PolicyMarks,
    ReadAhead,
    ReloadRequested,
    ReplayDevices,
    Requested,
    SealRequested,
    StackRead,
    Started,
    StopBatch,
    Tick,
    TurnAway,
    UeventReceived,
    UeventsLost,
    WatchOpened,
)
from kmodd.engine.in_flight import MAX_INTERACTIVE
from kmodd.engine.machine import Machine
from kmodd.engine.replies import Replies
from kmodd.engine.scheduler import NAMED, Scheduler
from kmodd.engine.state import EngineState
from kmodd.errors import Problem, assert_never
from kmodd.kernel.proc_modules import Loaded
from kmodd.kernel.uevent import Uevent
from kmodd.planning.job import Job
from kmodd.planning.outcome import OVERRIDDEN
from kmodd.planning.plan import Insmod
from kmodd.planning.record import (
    ADOPTED,
    ERR,
    INFO,
    NO_LOADER,
    NOTICE,
    OVERRUN,
    RELOADED,
    WARNING,
    Record,
)
from kmodd.planning.request import Origin, Request
from kmodd.state.quarantine import Quarantine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_RESOLVED = 1024
"""Requests that are resolved for one Advance: then the daemon reads the kernel's socket again."""

MAX_OVERRIDE_WAIT = 0.1
"""Seconds that asking for driver_override may take for one Advance."""


class Engine:
    """Decides what to do about each event."""

    def __init__(
        self,
        machine: Machine,
        marks: PolicyMarks,
        quarantine: Quarantine,
        *,
        uuid: str = "",
        dry_run: bool = False,
        expects_watch: bool = False,
    ) -> None:
        """`marks` and `quarantine` are what an earlier daemon of this boot left.

        uuid: stands in the uevents that the daemon asks devices for. dry_run: nothing is loaded. expects_watch: files
        will be watched (WatchOpened).
        """
        self.state = EngineState(machine, marks, quarantine, dry_run=dry_run)
        if expects_watch:
            self.state.system.expect_watch()
        self._scheduler = Scheduler(self.state, dry_run=dry_run)
        self._replies = Replies(self.state, self._scheduler)
        self._uuid = uuid
        self._log_level: int | None = None
        self._reconcile_at: float | None = None
        self.problems: Sequence[Problem] = ()
        """Lines that the last reload could not use."""
        self._is_checked = True
        """The configuration was searched for mistakes since it was read."""

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one event at `now` (monotonic, seconds). Returns what the daemon is to do, in order."""
        state = self.state
        state.set_time(now)
        match event:
            case Advance():
                self._advance()
            case Tick():
                self._tick()
            case UeventReceived(uevent):
                self._take(uevent, "uevent")
            case LoaderReplied() | LoaderDied():
                self._replies.take(event)
            case LoaderNamed(number, pid):
                self._loader_named(number, pid)
            case NotStarted():
                self._not_started(event)
            case StackRead(number, frames):
                if number in state.in_flight.batches:
                    state.in_flight.batches[number].read_stack(frames)
            case LoadersSeen(looks):
                state.lanes.see(looks, now)
            case Requested(request):
                self._requested(request)
            case UeventsLost():
                state.reporter.counters.add_overrun()
                state.invalidate("events_lost")
                state.reporter.log(Record(OVERRUN, WARNING, "The kernel dropped uevents; replaying all devices"))
            case DevicesFound(events, replay):
                self._devices_found(events, replay)
            case BootListRead(listed):
                for problem in listed.problems:
                    state.reporter.log_problem(problem)
                state.queue.add_boot_list(listed)
            case KernelLogged(lines):
                state.firmware.read_kernel_log(lines, now)
            case FilesChanged():
                self._files_changed()
            case CheckFiles():
                self._refresh()
            case _:
                self._administered(event)
        return state.pop_commands()

    def _administered(self, event: Started | ReloadRequested | SealRequested | WatchOpened | BootFinished) -> None:
        """What happens once, or because the administrator says so."""
        state = self.state
        match event:
            case Started():
                self._reload(whole=False)  # READY waits for the boot list, but for no index
                self._adopt()
            case ReloadRequested():
                self._reload()
            case SealRequested(sealed):
                state.policy.seal(sealed)
                state.invalidate("policy_changed" if sealed else "seal_removed")
            case WatchOpened():
                state.system.watch_opened()
            case BootFinished():
                if state.policy.booting:
                    state.policy.finish_boot()
                    if state.policy.is_on:
                        state.invalidate("policy_changed")
                self._check_configuration()
                state.reporter.end_coldplug()
            case _:
                assert_never(event)

    def set_log_level(self, level: int | None) -> None:
        """Write records of this level, as in syslog(3), and more important ones; None: of that of kmodd.conf."""
        self._log_level = level
        self.state.reporter.set_level(self.state.system.settings.log_level if level is None else level)

    # -- questions; none has an effect -------------------------------------------------------------------------

    def can_advance(self, now: float) -> bool:
        """Whether Advance would do something."""
        state = self.state
        if state.queue.replay_is_due:
            return True
        if state.system.snapshot is None or state.supply.is_off(now):
            return False
        return self._scheduler.can_resume() or self._can_take_interactive() or self._can_take_device()

    def _can_take_interactive(self) -> bool:
        """Whether a caller's request waits, and a loader may be started for it."""
        interactive, in_flight = self.state.queue.interactive, self.state.in_flight
        if not interactive or in_flight.interactive() >= MAX_INTERACTIVE:
            return False
        return interactive.has(operators=not in_flight.has_operator())

    def _can_take_device(self) -> bool:
        """Whether a device's request waits, and may go to a lane or be planned ahead."""
        return self.state.in_flight.has_room() and len(self.state.queue.devices) > 0

    @property
    def is_idle(self) -> bool:
        """Nothing is in flight, waits or is replayed: all requests are answered."""
        state = self.state
        busy = state.in_flight.awaited() or state.foreign.awaited() or state.in_flight.parked or state.in_flight.ready
        return not (busy or len(state.queue) or state.queue.replay)

    @property
    def devices_answered(self) -> bool:
        """The same for devices and the boot list alone."""
        state = self.state
        return not (state.in_flight.serves_devices() or len(state.queue.devices) or state.queue.replay)

    @property
    def devices_settled(self) -> bool:
        """All devices are answered, and nothing is under way that makes new ones appear."""
        return self.devices_answered and not (self.state.firmware.is_probing or self.state.foreign.awaited())

    @property
    def idle_loaders(self) -> int:
        """Number of loaders to keep that have nothing to do: one more than lanes; those of auto while devices wait."""
        settings = self.state.system.settings
        return 1 + (settings.steady_lanes if self.devices_answered else self.state.lanes.limit(settings))

    def deadline(self, now: float) -> float | None:
        """When Tick has something to do (monotonic, seconds); None: never."""
        state = self.state
        times = (
            self._reconcile_at,
            timeouts.deadline(state.in_flight, state.system.settings.stuck_after, now),
            state.retries.deadline(),
            state.foreign.deadline(),
            state.autoclean.deadline(),
            state.firmware.deadline(),
            state.supply.deadline(now),
            self._scheduler.next_look(),
        )
        return min((each for each in times if each is not None), default=None)

    # -- what comes in -----------------------------------------------------------------------------------------

    def _take(self, event: Uevent, origin: Origin, *, drift: bool = False) -> None:
        state = self.state
        if origin == "uevent":
            state.reporter.counters.add_event()
        if event.synthetic and event.get("SYNTH_UUID") == self._uuid:
            # The daemon itself asked the device: this is part of a replay, and does not override an operator.
            origin = "coldplug" if state.reporter.in_coldplug else "reconcile"
        if event.subsystem == "module":
            self._module_event(event)
        elif event.action == "remove":
            state.quarantine.leave(event.devpath)
        elif event.action == "add" and not event.synthetic:
            state.quarantine.arrive(event.devpath)
            if event.get("DEVTYPE") == "usb_device":  # which asks for nothing; its interfaces, with its name, follow
                state.emit(ReadAhead((), (event.devpath,)))
        state.queue.add_event(event, origin, drift=drift)

    def _module_event(self, event: Uevent) -> None:
        """A module was loaded or removed, by any process."""
        state = self.state
        if event.action == "add" and not event.synthetic:
            state.system.mark_loaded(event.sysname)
            was_kept_out = state.quarantine.load(event.sysname)
            if event.sysname in state.quarantine.crashed:
                self._forgive(state.machine.loaded())
            if state.results.pop_obstacle(event.sysname) or was_kept_out:
                state.invalidate("obstacle_gone")
        elif event.action == "remove":
            state.quarantine.remove(event.sysname)
            state.autoclean.gone(event.sysname)  # if it is back later, another process has loaded it
            state.invalidate("module_removed")

    def _forgive(self, loaded: Loaded) -> None:
        """Have devices ask again for modules that have not crashed after all."""
        if self.state.quarantine.forgive(loaded):
            self.state.invalidate("obstacle_gone")

    def _devices_found(self, events: Sequence[Uevent], replay: str | None) -> None:
        state = self.state
        if replay is None:
            state.reporter.begin_coldplug(len(events))
            state.queue.cancel_replay()
            state.queue.add_coldplug(events, state.system.settings.steady_lanes)
            if named := tuple(event.devpath for event in events if event.subsystem in NAMED):
                state.emit(ReadAhead((), named))
            return
        for event in events:
            self._take(event, "reconcile", drift=replay == "drift")

    def _requested(self, request: Request) -> None:
        """A caller's request is queued, or turned away at once."""
        if request.origin == "operator":
            self._refresh()
        if self.state.system.no_tree:
            self.state.emit(TurnAway(request, "no_tree"))
        elif not self.state.queue.add_interactive(request):
            self.state.emit(TurnAway(request, "no_room"))

    def _files_changed(self) -> None:
        """Read what changed; requests that lacked a module file are tried again if it exists now."""
        state = self.state
        self._refresh()
        if state.policy.is_on:
            state.invalidate("policy_changed")  # a flag may have been set or removed
        for request in state.retries.came(state.machine.present):
            self._try_again(request)
        state.firmware.files_changed(state.now)

    def _try_again(self, request: Request) -> None:
        self.state.results.forget(request.text)
        self.state.queue.add(request)

    # -- configuration -----------------------------------------------------------------------------------------

    def _reload(self, *, whole: bool = True) -> None:
        """Read indexes and configuration again. `whole`: as in SystemState.reload."""
        state = self.state
        self.problems, changed = state.system.reload(whole=whole)
        self._is_checked = False
        if changed:
            state.invalidate("index_changed")
        elif not state.system.no_tree:
            state.invalidate("index_reread")
        if state.system.no_tree:
            state.queue.cancel_replay()
        if self._log_level is None:
            state.reporter.set_level(state.system.settings.log_level)
        deadline = state.now + state.system.settings.reconcile_every
        self._reconcile_at = deadline if self._reconcile_at is None else min(self._reconcile_at, deadline)

    def _check_configuration(self) -> None:
        """Write the mistakes in the configuration, which no request shows; not while devices wait."""
        state = self.state
        if self._is_checked or state.system.snapshot is None or state.system.no_tree:
            return
        self._is_checked = True
        state.reporter.log_findings(state.machine.findings(state.system.snapshot))

    def _refresh(self) -> None:
        """Read again if anything changed on disk; else this costs a few stat calls."""
        state = self.state
        if state.system.check_current():
            return
        is_first = state.system.snapshot is None
        self._reload()
        if not is_first and not state.system.no_tree:
            message = "Module index or configuration changed; read again"
            state.reporter.log(Record(RELOADED, INFO, message))

    def _adopt(self) -> None:
        """Follow the loads that were under way when the daemon started."""
        state = self.state
        modules = state.system.loaded().modules
        coming = [name for name, module in modules.items() if module.state == "coming"]
        names = [name for name in coming if name not in state.quarantine.crashed]
        state.foreign.adopt(names, state.now)
        for name in names:
            message = f"Module {name} was already being loaded when kmodd started; waiting for it"
            state.reporter.log(Record(ADOPTED, NOTICE, message, (("KMODD_MODULE", name),)))

    # -- loading -----------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Resolve requests one after the other, until loaders have all they can take."""
        state = self.state
        if not state.queue.boot_left and not state.system.read_indexes():
            self._refresh()
        self._replay()
        if not (len(state.queue) or state.in_flight.parked or state.in_flight.ready or state.system.no_tree):
            return
        if state.supply.is_off(state.now):
            return
        if not state.system.is_watched or state.system.snapshot is None or state.system.no_tree:
            self._refresh()
        if state.system.snapshot is None:
            return
        self._scheduler.resume()
        waited = state.machine.waited + MAX_OVERRIDE_WAIT
        for _ in range(MAX_RESOLVED):
            batches = len(state.in_flight.batches)
            request = self._pop_request()
            if request is None:
                break
            if not request.is_interactive and state.results.repeats(request, state.now):
                state.reporter.counters.add_repeat()
                state.queue.answer_boot(request.text)
                continue
            if not request.is_interactive and (parked := state.in_flight.pop_parked(request.text)):
                # Its job waits for a load: merged with it, or each event of the device would have one more job wait.
                state.queue.add(request, first=True)
                state.queue.add(parked.plan.request, first=True)
                continue
            job = self._plan(request)
            self._scheduler.run(job)
            self._scheduler.read_ahead(job)
            self._scheduler.log(job)
            # The lanes are busy, or a loader is to get its batch before the next plan.
            if state.in_flight.is_last_ready(job) or len(state.in_flight.batches) != batches:
                break
            if state.machine.waited > waited:
                break

    def _replay(self) -> None:
        """Have sysfs read again, if that is due."""
        if replay := self.state.queue.pop_replay():
            self.state.emit(ReplayDevices(replay))

    def _pop_request(self) -> Request | None:
        """Take the next request that may be planned: those of callers first; None: there is none."""
        if self._can_take_interactive():
            return self.state.queue.interactive.take(operators=not self.state.in_flight.has_operator())
        return self.state.queue.devices.take() if self._can_take_device() else None

    def _plan(self, request: Request) -> AnyJob:
        """The job of a request that was just taken."""
        state = self.state
        job = state.system.job(request)
        if isinstance(job, Job) and not job.plan.goals and state.system.is_watched:
            asks_again = not request.is_interactive and request.origin != "boot"
            if not state.system.check_current(asks_again=asks_again):
                self._refresh()  # there is no "no match" before the files were checked
                job = state.system.job(request)
        if not isinstance(job, Job) or request.origin == "operator":
            return job
        job.note_ages(state.system.index_age, state.results.age)
        for goal in job.plan.goals:
            state.quarantine.asks(goal.module, request.devices)
        job.keep_out(state.quarantine.kept_out((goal.module for goal in job.plan.goals), request))
        is_replay = request.origin == "reconcile" or (request.origin == "coldplug" and not state.policy.booting)
        if is_replay and any(isinstance(entry, Insmod) for entry in job.plan.steps):
            self._respect_overrides(job)
        return job

    def _respect_overrides(self, job: Job) -> None:
        """Do not load what the administrator removed or overrode."""
        request = job.plan.request
        if set(request.devices) <= self.state.machine.overridden(request.devices):
            job.abandon(OVERRIDDEN)
        elif request.drift and not job.kept_out:
            self.state.reporter.log_drift(job.plan)

    # -- loaders -----------------------------------------------------------------------------------------------

    def _loader_named(self, number: int, pid: int) -> None:
        state = self.state
        state.supply.succeed()
        if state.firmware.has(number):
            state.firmware.begun(number)
        elif number in state.in_flight.batches:
            state.in_flight.batches[number].name_loader(pid)

    def _not_started(self, event: NotStarted) -> None:
        state = self.state
        if state.firmware.has(event.batch):
            state.firmware.ended(event.batch, state.now, begun=False)
            return
        if not event.too_long and state.supply.fail(event.why, state.now):
            message = f"Failed to start a loader: {event.why}; requests wait"
            state.reporter.log(Record(NO_LOADER, ERR, message))
        if event.batch in state.in_flight.batches:
            self._scheduler.start_failed(state.in_flight.batches[event.batch], event.why, too_long=event.too_long)

    # -- time --------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Do what is due: overdue loads, foreign loads, retries, autoclean, the search for drift."""
        state, now = self.state, self.state.now
        settings = state.system.settings
        state.stop_batches(older_than=state.system.generation)
        if state.quarantine.crashed:
            self._forgive(state.system.loaded())
        for late in timeouts.overdue(state.in_flight, state.machine.loaded, settings.stuck_after, now, self._ask_stack):
            if late.batch.stop():
                state.emit(StopBatch(late.batch.number))
            if late.batch.is_asking:
                state.emit(DropStack(late.batch.number))
            if late.is_live:
                state.system.mark_loaded(late.batch.module)
            state.reporter.log_outcomes([late.stall] if late.stall else [])
            self._scheduler.give_up(late.batch, state.policy.note(late.outcome), is_live=late.is_live)
        if state.foreign.is_due(now):
            state.system.drop_loaded()
            if state.foreign.look(state.system.loaded(), settings.stuck_after, state.reporter, now):
                state.invalidate("foreign_load_ended")
        for request in state.retries.due(now):
            self._try_again(request)
        for request in state.autoclean.due(state.machine.loaded, settings, now):
            state.queue.add_interactive(request)
        state.firmware.tick(now)
        if self._reconcile_at is not None and now >= self._reconcile_at:
            self._reconcile_at = now + settings.reconcile_every
            state.queue.request_replay("drift")
        self._scheduler.look()

    def _ask_stack(self, batch: Batch) -> None:
        self.state.emit(AskStack(batch.number, batch.pid))
