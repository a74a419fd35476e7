"""What must hold on a simulated machine, checked after each event, each round, and at rest.

An invariant uses what happened on the machine, the public state of the engine and its commands; it does not ask the
engine's own rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kmodd.engine.batch import Batch
from kmodd.engine.engine import Engine
from kmodd.engine.events import (
    Advance,
    AnyJob,
    AskStack,
    Command,
    DevicesFound,
    Event,
    Finish,
    LoaderDied,
    LoaderReplied,
    LoadersSeen,
    LookAtLoaders,
    Requested,
    StartBatch,
    StopBatch,
    TurnAway,
    UeventReceived,
)
from kmodd.kernel.uevent import Uevent
from kmodd.planning.job import Job
from kmodd.planning.plan import Insmod, Install, Skip, Step
from kmodd.planning.record import Record
from kmodd.planning.request import Origin, Request
from tests.simulation.coverage import BATCH_TABLE, STARTUP_TABLE, Coverage
from tests.simulation.journald import QUEUE
from tests.simulation.lane_rules import LaneRules
from tests.simulation.short import short

if TYPE_CHECKING:
    from tests.simulation.simulation import Simulation

MAX_INTERACTIVE = 50
"""Loaders for callers at a time (README, kernel/module/kmod.c)."""

STEPS = 16
"""Files of one batch (docs/design/loading.md)."""


PLANNED_AHEAD = 4
"""Jobs of devices that are planned ahead (docs/design/engine.md)."""

REFUSED = frozenset({"failed", "crashed", "missing", "denied", "blacklisted", "blocked"})
"""Results that keep out the modules that need the module, too."""

ORIGINS: tuple[Origin, ...] = ("uevent", "coldplug", "reconcile")
"""What a request for a device can come from."""

NOT_REMOVED = frozenset({"in_use", "absent", "not_removed"})
"""Results of removals that change nothing: what was told about the load before still holds."""


class Violation(Exception):
    """An invariant does not hold."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


@dataclass
class Seen:
    """What one daemon can know, from what it was given."""

    live: set[str] = field(default_factory=set)
    """Modules that are live, by a reply or a uevent that it has read."""
    crashed: set[str] = field(default_factory=set)
    """Modules whose loader it saw dying of an oops."""
    asked: dict[str, set[str]] = field(default_factory=dict)
    """Module → devices for which it gave it to a loader."""
    removed: dict[str, set[str]] = field(default_factory=dict)
    """Module that was removed → those devices that are still there."""
    left: set[str] = field(default_factory=set)
    """Devices that have gone."""
    batches: dict[int, tuple[Batch, str]] = field(default_factory=dict)
    """Number → batch, and its state."""
    loaded: int = 0
    """Outcomes `loaded` that must have been counted."""
    stalled: set[tuple[int, int]] = field(default_factory=set)
    """Batch and number of a step that counted as loaded before its reply."""


class Invariants:
    """Checks one simulation."""

    def __init__(self, sim: Simulation, coverage: Coverage) -> None:
        self._sim = sim
        self._coverage = coverage
        self._engine: Engine | None = None
        self._seen = Seen()
        self._before: tuple[str, int, int] = ("", 0, 0)
        """State, number of finished steps, number of steps of the batch whose loader the last event was about."""
        self._noted: dict[int, AnyJob] = {}
        """Jobs under way whose goals are noted, by id."""
        self._asked: dict[int, Request] = {}
        """Requests that the daemon has read and not answered; the object is kept, so that its id is its own."""
        self._lanes = LaneRules()
        self._most_serial = 0
        """Lanes in use when the number of lanes was last lowered."""
        self._in_force: tuple[tuple[str, ...], str, bool] = ((), "off", False)
        """Rules, mode and seal at the last event."""
        self.told: dict[str, str] = {}
        """Module → result of its last record, but for NOT_REMOVED."""
        self._refused: set[str] = set()
        """Modules that have a record of REFUSED since they were loaded last."""
        self._logged = 0
        """Records of this daemon."""
        self._journal_before = 0
        """Records that journald had, or was told to be lost, before this daemon."""
        self.events = 0
        self.devices: set[str] = set()
        """All devices that were there."""

    def _fail(self, kind: str, text: str) -> None:
        raise Violation(kind, text)

    # -- the daemon's life -------------------------------------------------------------------------------------

    def daemon_starts(self, engine: Engine) -> None:
        """A daemon starts. What crashed or was removed stays so if the file below /run says so."""
        self._engine = engine
        self._seen = Seen(
            crashed=set(engine.state.quarantine.crashed),
            removed={name: set(devices) for name, devices in engine.state.quarantine.removed.items()},
        )
        self._most_serial, self._lanes = 0, LaneRules()
        self._logged, self._journal_before = 0, self._in_journal()

    def daemon_ends(self) -> None:
        """The daemon was killed."""
        self._engine = None
        self._asked.clear()
        self._noted.clear()

    # -- events ------------------------------------------------------------------------------------------------

    def before(self, event: Event) -> None:
        """The engine is about to handle an event."""
        self.events += 1
        self._sim.happened.append((self._sim.now, event))
        if self._engine is None:
            return
        batches = self._engine.state.in_flight.batches
        if isinstance(event, LoaderReplied | LoaderDied) and event.batch in batches:
            batch = batches[event.batch]
            self._before = (batch.state, batch.done, len(batch.steps))
        match event:
            case Requested(request):
                self._asked[id(request)] = request
            case UeventReceived(uevent):
                self._read_uevent(uevent)
            case LoadersSeen():
                self._lanes.see(event, self._engine, self._sim.now)
            case DevicesFound(events):
                self.devices.update(each.devpath for each in events)
                self._seen.left -= self.devices.intersection(each.devpath for each in events)
            case LoaderReplied(number, reply) if number in batches:
                step = batches[number].step
                if isinstance(step, Insmod) and not reply.errno:
                    self._seen.live.add(step.module)
            case LoaderDied(number) if number in batches:
                module = self._sim.kernel.modules.get(batches[number].module)
                if event.begun and module and module.is_crashed:
                    self._seen.crashed.add(batches[number].module)

    def _read_uevent(self, event: Uevent) -> None:
        seen, name, path = self._seen, event.sysname, event.devpath
        if event.subsystem == "module":
            if event.action == "add":
                if self._sim.kernel.state(name) == "live":
                    seen.live.add(name)
                seen.removed.pop(name, None)
            else:
                seen.live.discard(name)
                self._note_asked()
                if name in seen.asked:
                    seen.removed[name] = set(seen.asked[name])
        elif event.action == "remove":
            for devices in (*seen.asked.values(), *seen.removed.values()):
                devices.discard(path)
            seen.left.add(path)
        else:
            self.devices.add(path)
            seen.left.discard(path)
            if not event.synthetic:
                for devices in seen.removed.values():
                    devices.discard(path)

    def _note_asked(self) -> None:
        """Note the devices whose jobs are under way, for each module that they are for."""
        if self._engine:
            in_flight = self._engine.state.in_flight
            jobs = {id(job): job for _, _, job in in_flight.parked}
            jobs |= {id(job): job for _, job in in_flight.ready}
            for batch in in_flight.batches.values():
                jobs |= {id(job): job for job in batch.jobs[batch.done :]}
            for number, job in jobs.items():
                if number not in self._noted:
                    self._note_goals(job)
            self._noted = jobs

    def _note_goals(self, job: AnyJob) -> None:
        if isinstance(job, Job) and job.plan.request.origin != "operator":
            for goal in job.plan.goals:
                asked = self._seen.asked.setdefault(goal.module, set())
                asked |= set(job.plan.request.devices) - self._seen.left

    def after(self, event: Event, commands: list[Command]) -> None:
        """The engine has handled it: check the batches, then each command."""
        self._sim.happened += commands
        engine = self._engine
        if engine is None:
            return
        if isinstance(event, Advance):
            self._note_asked()
        self._check_batches(event, engine)
        self._check_policy(engine)
        for command in commands:
            match command:
                case StartBatch():
                    self._check_start(command, engine)
                case StopBatch(number) | AskStack(number):
                    if number not in engine.state.in_flight.batches:
                        self._fail("unknown batch", short(command))
                case Finish(job):
                    self._check_finished(job)
                case TurnAway(request):
                    if id(request) not in self._asked:
                        self._fail("answered twice", request.text)
                case LookAtLoaders():
                    if why := self._lanes.wrong_look(engine):
                        self._fail("looks", why)
        self._lanes.event_is_over(engine)

    def _check_batches(self, event: Event, engine: Engine) -> None:
        """The table of the batch's states (kmodd.engine.batch)."""
        batches = engine.state.in_flight.batches
        seen = self._seen
        for number, batch in batches.items():
            seen.batches.setdefault(number, (batch, batch.state))
        for number, (batch, was) in list(seen.batches.items()):
            is_hers = isinstance(event, LoaderReplied | LoaderDied) and event.batch == number
            state, done, count = self._before if is_hers else (was, 0, len(batch.steps))
            if is_hers or batch.state != was:
                word = self._word_of(event, batch, done, count) if is_hers else self._overdue(batch)
                row = (state, word, str(batch.state))
                self._coverage.batch[row] += 1
                if row not in BATCH_TABLE and not (word == "not started" and batch.state == "done"):
                    self._fail("batch table", f"batch {number}: {row}")
            if (batch.state == "done") == (number in batches):
                self._fail("batch table", f"batch {number} is {batch.state}, in flight: {number in batches}")
            seen.batches[number] = (batch, batch.state)
            if batch.state == "done":
                del seen.batches[number]

    def _overdue(self, batch: Batch) -> str:
        if batch.state == "done":
            return "not started"
        if batch.state == "stalled":
            self._seen.loaded += 1
            self._seen.stalled.add((batch.number, batch.done))
        return "overdue, live" if batch.state == "stalled" else "overdue"

    def _word_of(self, event: Event, batch: Batch, done: int, count: int) -> str:
        """The event as the table names it; what is loaded by it is counted."""
        if isinstance(event, LoaderDied):
            return "end" if event.begun else "not begun"
        assert isinstance(event, LoaderReplied)
        if event.reply.stage == "none":
            return "not begun"
        step = batch.steps[done]
        if not event.reply.errno and isinstance(step, Insmod | Install):
            self._coverage.loads += 1
            self._seen.loaded += (batch.number, done) not in self._seen.stalled
        return "end" if event.reply.errno or done + 1 == count else "reply"

    # -- what goes to a loader ---------------------------------------------------------------------------------

    def _check_start(self, command: StartBatch, engine: Engine) -> None:
        batch = engine.state.in_flight.batches.get(command.batch)
        if batch is None or batch.steps != command.steps:
            raise Violation("unknown batch", short(command))
        self._check_lanes(batch, engine)
        if len(batch.steps) > STEPS:
            self._fail("too many steps", short(command))
        before: list[str] = []
        for step, job in zip(batch.steps, batch.jobs, strict=True):
            if step.module in before:
                self._fail("twice in a batch", step.module)
            if isinstance(step, Insmod | Install):
                self._check_step(step, job, batch, before)
            before.append(step.module)

    def _check_lanes(self, batch: Batch, engine: Engine) -> None:
        """Devices use at most the lanes; a number that was lowered lets those go on that run."""
        if batch.is_interactive():
            awaited = [
                each.job.plan.request.origin for each in engine.state.in_flight.batches.values() if each.is_awaited
            ]
            if len(awaited) > MAX_INTERACTIVE or awaited.count("operator") > 1:
                self._fail("lanes", f"{len(awaited)} loaders, {awaited.count('operator')} for operators")
            return
        used = sum(not each.is_interactive() for each in engine.state.in_flight.batches.values() if each.is_awaited)
        if used > max(self._lanes.limit(engine), self._most_serial):
            self._fail("lanes", f"{used} batches for devices with {engine.state.system.settings.lanes} lanes")
        if why := self._lanes.wrong_start(batch, engine, self._sim.now):
            self._fail("lane too early", why)
        if why := self._lanes.wrong_turn(batch, engine):
            self._fail("boot order", why)
        self._coverage.further_lanes += self._lanes.is_further(batch, engine)

    def _check_step(self, step: Step, job: AnyJob, batch: Batch, before: list[str]) -> None:
        name, request, kernel = step.module, job.plan.request, self._sim.kernel
        who = f"{name} for {request.origin} {request.text}"
        if name in self._seen.live and kernel.state(name) == "live":
            self._fail("loaded twice", who)
        if name in self._seen.crashed and kernel.state(name) is not None:
            self._fail("crashed before", who)
        if self._is_denied(name, request):
            self._fail("denied", who)
        self._check_others(step, job, batch, who)
        self._check_removed(name, job, who)
        if isinstance(step, Insmod) and isinstance(job, Job):
            self._check_order(step, job, before, who)

    def _check_others(self, step: Step, job: AnyJob, batch: Batch, who: str) -> None:
        """No other loader of this daemon is at the module, or will be; an init may ask for a later file of its run."""
        for other in self._engine.state.in_flight.batches.values() if self._engine else ():
            if other.number >= batch.number:
                continue
            if other.module == step.module and (other.is_awaited or other.hangs):
                self._fail("given twice", f"{who}, batch {other.number} is at it")
            later = [each.module for each in other.steps[other.done :]]
            if not job.plan.request.is_interactive and other.is_awaited and step.module in later:
                self._fail("given twice", f"{who}, batch {other.number} has it, too")

    def _check_removed(self, name: str, job: AnyJob, who: str) -> None:
        """What an operator has removed stays out for the devices that were there."""
        request = job.plan.request
        if request.origin not in ("reconcile", "coldplug") or not isinstance(job, Job):
            return
        if name not in [goal.module for goal in job.plan.goals]:
            return
        if self._seen.removed.get(name, set()) & set(request.devices):
            self._fail("removed before", who)

    def _check_order(self, step: Insmod, job: Job, before: list[str], who: str) -> None:
        """Dependencies and softdeps first: each step of the plan before this one has an outcome or is on its way."""
        known = {outcome.module for outcome in job.outcomes} | set(before)
        for goal in job.plan.goals:
            names = [entry.module for entry in goal.entries if not isinstance(entry, Skip)]
            if step.module not in names or goal.module in job.kept_out:
                continue
            early = names[: names.index(step.module)]
            if missing := [name for name in early if name not in known and self._sim.kernel.state(name) != "live"]:
                self._fail("order", f"{who} before {missing}")
            break
        known_dead = [each for each in self._sim.files.all_needs(step.module) if each in self._seen.crashed]
        if any(self._is_crashed(each) and each not in self._sim.files.was_unindexed for each in known_dead):
            self._fail("blocks in the kernel", f"{who}: {known_dead} has crashed")
        if not step.required:
            return
        for needed in self._sim.files.all_needs(step.module):
            is_absent = needed not in before and self._sim.kernel.state(needed) is None
            if is_absent and not job.begun and not self._is_loose() and not self._sim.files.is_blocked(needed):
                self._fail("dependency", f"{who} before {needed}")

    def _is_loose(self) -> bool:
        """Whether files or lines of the index were missing, or a module went unseen: a plan may lack what it needs.

        Where the file of a dependency is missing, the module is tried without all of them, as by kmod.
        """
        return (
            self._sim.files.was_missing
            or bool(self._sim.files.was_unindexed)
            or self._sim.files.was_hidden
            or any("remove@/module" in each for each in self._unread())
        )

    def _unread(self) -> list[str]:
        return [*self._sim.kernel.uevents, *(self._sim.daemon.socket if self._sim.daemon else ())]

    def _is_denied(self, module: str, request: Request) -> bool:
        """Whether the rules that the engine has read deny the module: `allow` and `deny`, of modules and origins."""
        engine = self._engine
        if engine is None:
            return False
        sealed = engine.state.policy.sealed
        if not sealed and self._sim.machine.mode_read != "enforce":
            return False
        for rule in self._sim.machine.rules_read:
            verdict, *conditions = rule.split(" ")
            values = dict(condition.split("=", 1) for condition in conditions if "=" in condition)
            if module in values.get("module", module).split(",") and request.origin == values.get(
                "origin", request.origin
            ):
                return verdict == "deny"
        return sealed

    def _check_policy(self, engine: Engine) -> None:
        """Where the rules or the seal have changed, no loader goes on to a step that they deny."""
        in_force = (self._sim.machine.rules_read, self._sim.machine.mode_read, engine.state.policy.sealed)
        if in_force == self._in_force:
            return
        self._in_force = in_force
        for batch in engine.state.in_flight.awaited():
            for step, job in list(zip(batch.steps, batch.jobs, strict=True))[batch.done + 1 :]:
                if isinstance(step, Insmod) and self._is_denied(step.module, job.plan.request) and not batch.stopping:
                    self._fail("denied", f"{step.module} follows in batch {batch.number}, which goes on")

    # -- answers, records --------------------------------------------------------------------------------------

    def _check_finished(self, job: AnyJob) -> None:
        """A complete job: each entry of its plan has an outcome, and its caller was not answered before."""
        request = job.plan.request
        self._note_goals(job)
        if request.is_interactive and request.removing is None and id(request) not in self._asked:
            self._fail("answered twice", request.text)
        if isinstance(job, Job):
            entries = sum(len(goal.entries) for goal in job.plan.goals) or 1
            if len(job.outcomes) != entries:
                self._fail("outcomes", f"{len(job.outcomes)} of {entries} for {request.origin} {request.text}")

    def answered(self, request: Request) -> None:
        """A caller gets its answer."""
        self._asked.pop(id(request), None)
        self._sim.answer(request)

    def logged(self, record: Record) -> None:
        """A record is written."""
        self._sim.records.append(record)
        self._logged += 1
        fields = dict(record.fields)
        if "KMODD_RESULT" in fields:
            module, result = fields.get("KMODD_MODULE", ""), fields["KMODD_RESULT"]
            if result == "denied" and self._is_for_another(module, fields["KMODD_RULE"]):
                return
            was_out = result == "removed" and self.told.get(module) in REFUSED | {"not_attempted"}  # by a command
            if result not in NOT_REMOVED and not was_out:
                self.told[module] = result
            if result in REFUSED:
                self._refused.add(module)
            elif result == "loaded":
                self._refused.discard(module)

    def _is_for_another(self, module: str, rule: str) -> bool:
        """Whether the module was denied with one that it does not need: nothing follows for its own devices."""
        culprit = rule.rpartition(" (for ")[2].removesuffix(")") if rule.endswith(")") else module
        return culprit != module and culprit not in self._sim.files.all_needs(module)

    def moved(self, before: str, after: str) -> None:
        """The start-up may have gone to another phase."""
        if before != after:
            self._coverage.startup[before, after] += 1
            if (before, after) not in STARTUP_TABLE:
                self._fail("start-up table", f"{before} to {after}")

    def stuck_in_circle(self) -> None:
        """The engine has more to do for ever."""
        self._fail("circle", "the loop does not come to rest")

    # -- after a round -----------------------------------------------------------------------------------------

    def round_is_over(self) -> None:
        """Nothing is left that could go on without an event, and nothing grows without bound."""
        engine = self._engine
        if engine is None:
            return
        state = engine.state
        self._most_serial = max(state.in_flight.serial(), self._lanes.limit(engine))
        if not state.supply.is_off(self._sim.now) and not state.system.no_tree:
            self._check_waiting(engine)
        self._check_ring(engine)
        self._check_bounds(engine)

    def _check_waiting(self, engine: Engine) -> None:
        state = engine.state
        in_flight, foreign = state.in_flight, state.foreign.awaited()
        has_lane = self._lanes.has_lane(engine, self._sim.now)
        if why := self._lanes.missing_look(engine, self._sim.now):
            self._fail("looks", why)
        running = {batch.module for batch in in_flight.awaited()}
        all_steps = {step.module for batch in in_flight.awaited() for step in batch.steps[batch.done :]}
        for name, _, job in in_flight.parked:
            request = job.plan.request
            taken = running if request.origin == "request" else all_steps
            if name not in taken and name not in foreign and (has_lane or request.is_interactive):
                self._fail("sleeps", f"{request.origin} {request.text} waits for {name}, which nothing loads")
        if has_lane and in_flight.ready:
            self._fail("sleeps", f"{in_flight.ready[0][1].plan.request.text} is planned, and a lane is free")
        if has_lane and len(state.queue.devices):
            self._fail("sleeps", "a device waits, and a lane is free")
        callers = state.queue.interactive.waiting()
        if callers and not in_flight.has_operator() and in_flight.interactive() < MAX_INTERACTIVE:
            self._fail("sleeps", f"caller of {callers[0].text} waits, and a loader may be started")

    def _check_ring(self, engine: Engine) -> None:
        """No init waits for a request that waits for that init, as far as requesters are known."""
        in_flight = engine.state.in_flight
        loaders = {batch.pid: batch for batch in in_flight.awaited() if batch.pid}
        waits: dict[int, set[int]] = {}
        for name, _, job in in_flight.parked:
            asker = job.plan.request.requester
            if asker and asker.pid in loaders:
                holders = {pid for pid, batch in loaders.items() if batch.module == name}
                waits.setdefault(asker.pid, set()).update(holders)
        for batch in loaders.values():
            asker = batch.job.plan.request.requester
            if asker and asker.pid in loaders:
                waits.setdefault(asker.pid, set()).add(batch.pid)
        for first in waits:
            seen: set[int] = set()
            todo = list(waits[first])
            while todo:
                if (pid := todo.pop()) not in seen:
                    seen.add(pid)
                    todo += waits.get(pid, ())
            if first in seen:
                self._fail("ring", f"the init of {loaders[first].module} waits for itself")

    def _check_bounds(self, engine: Engine) -> None:
        """Memory follows from devices, modules and callers, not from events."""
        state, files = engine.state, self._sim.files
        texts = len(self.devices) + len(files.needs) + len(files.boot) + 8
        callers = len(self._asked) + len(files.needs)
        hung = sum(not batch.is_awaited for batch in state.in_flight.batches.values())
        counts = {
            "devices in the queue": (len(state.queue.devices), texts),
            "parked jobs": (len(state.in_flight.parked), texts + callers),
            "planned jobs": (len(state.in_flight.ready), PLANNED_AHEAD + STEPS * self._lanes.limit(engine)),
            "batches": (len(state.in_flight.batches), self._lanes.limit(engine) + callers + hung + 3),
            "answers owed": (len(state.in_flight.interactive_requests()), callers + 50),
            "queued records": (self._queued(), QUEUE),
            "commands": (len(self._sim.loaders.all), len(self._sim.kernel.needs) + callers + hung + 60),
        }
        for what, (count, most) in counts.items():
            if count > most:
                self._fail("unbounded", f"{count} {what}, expected at most {most}")

    # -- at rest -----------------------------------------------------------------------------------------------

    def at_rest(self) -> None:
        """Everything is answered; each device has its driver, or a record says why not; counters add up."""
        engine = self._engine
        if engine is None:
            return
        state = engine.state
        if not engine.is_idle or engine.can_advance(self._sim.now):
            self._fail("restless", self.summary())
        if state.queue.boot_left and not state.system.no_tree:
            self._fail("boot list", f"{sorted(state.queue.boot_left)} unanswered")
        counted = state.reporter.counters.results.get("loaded", 0)
        if counted < self._seen.loaded:
            self._fail("counters", f"{self._seen.loaded} modules were loaded, {counted} are counted")
        if self._logged != self._in_journal() - self._journal_before:
            found = self._in_journal() - self._journal_before
            self._fail("records", f"{self._logged} were written, {found} came or were told to be lost")
        if self._sim.callers:
            self._fail("unanswered", " ".join(request.text for request, _ in self._sim.callers.values()))
        for name, alias in self._sim.kernel.devices.items():
            self._check_device(f"/devices/{name}", alias)
        for name, firmware in self._sim.kernel.lacks.items():
            if firmware in self._sim.files.firmware:
                self._fail("no probe", f"{name} lacks {firmware}, which exists")

    def _queued(self) -> int:
        journal = self._sim.daemon.journal if self._sim.daemon else None
        return journal.waiting if journal else 0

    def _in_journal(self) -> int:
        """Records that have come to journald, or were told to be lost."""
        journald = self._sim.run.journald
        return journald.records + journald.told_lost if journald else 0

    def _check_device(self, device: str, alias: str) -> None:
        files, kernel = self._sim.files, self._sim.kernel
        for module in files.matches(alias):
            if kernel.state(module) == "live" or files.is_blacklisted(module) or self._is_out(module, device):
                continue
            if files.is_blocked(module):
                continue
            if not self._is_explained(module):
                self._fail(f"lost, {self.told.get(module)}", f"{device} ({alias}) has no {module}")

    def _is_explained(self, module: str) -> bool:
        """Whether a record that still holds says why the module is not loaded."""
        match self.told.get(module, ""):
            case "missing":
                return bool(self._sim.files.missing) or module not in self._sim.files.needs
            case "not_attempted" | "stuck":
                needs = (module, *self._sim.files.all_needs(module))
                kept_out = any(self._sim.files.keeps_out(each) for each in needs)
                return kept_out or any(
                    self._is_obstacle(each) or self._is_crashed(each) or self._is_gone(each) for each in needs
                )
            case "denied":
                needs = (module, *self._sim.files.all_needs(module))
                return any(self._is_denied(each, Request(module, origin)) for each in needs for origin in ORIGINS)
            case result:
                return result in REFUSED

    def _is_obstacle(self, module: str) -> bool:
        """Whether the module was refused and is still not there."""
        return module in self._refused and self._sim.kernel.state(module) != "live"

    def _is_crashed(self, module: str) -> bool:
        return module in self._sim.kernel.modules and self._sim.kernel.modules[module].is_crashed

    def _is_gone(self, module: str) -> bool:
        """Whether the module was removed while a device that had asked for it was there."""
        return bool(self._seen.removed.get(module))

    def _is_out(self, module: str, device: str) -> bool:
        """Whether the module was removed on purpose, or the administrator overrides the device."""
        is_removed = device in self._seen.removed.get(module, set())
        return is_removed or device.rpartition("/")[2] in self._sim.files.overridden

    def summary(self) -> str:
        """What the engine waits for."""
        if self._engine is None:
            return "no daemon"
        state = self._engine.state
        parked = [f"{job.plan.request.text} for {name}" for name, _, job in state.in_flight.parked]
        ready = [job.plan.request.text for _, job in state.in_flight.ready]
        batches = [f"{each.number} {each.module} {each.state}" for each in state.in_flight.batches.values()]
        calls = [f"{call.module}{' blocked' * call.is_blocked}" for call in self._sim.kernel.calls]
        return (
            f"parked {parked}, ready {ready}, batches {batches}, queued {len(state.queue)}, "
            f"foreign {state.foreign.awaited()}, calls {calls}"
        )
