"""The line that every request takes: waits, is resolved, is loaded step by step, is told.

Nothing in here waits: `take` and `order` put in, `advance` goes as far as it can, `heard` brings back what a loader
said. The daemon's loop calls them in turn.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from kmodd import outcome as telling
from kmodd.answers import Answers
from kmodd.boot_list import BootList
from kmodd.errors import NoTree, Problem
from kmodd.host.calls import call_of, outcome_of, outcome_of_death
from kmodd.host.journal import Journal
from kmodd.host.lanes import Died, Lane, Loaders
from kmodd.host.loader import Call, Reply
from kmodd.host.settings import read_settings
from kmodd.host.tree import Tree, TreeSnapshot
from kmodd.job import Job
from kmodd.modprobe_d import DROP_IN
from kmodd.outcome import Outcome, Record
from kmodd.plan import Plan, RemovalStep, Step
from kmodd.procfs import Loaded
from kmodd.removal import RemovalJob, plan_removal
from kmodd.report import Report
from kmodd.request import Backlog, Origin, Request, wanted
from kmodd.resolve import manner_of, resolve
from kmodd.uevent import Uevent

AnyJob = Job | RemovalJob

LOOK_FOR_LOADER = 5.0
"""Seconds until a loader is looked for again where none was to be had."""

BATCH = 256
"""Requests that are resolved without a load before the kernel's socket is looked at again."""


@dataclass(slots=True)
class Work:
    """What is with a loader at this moment."""

    lane: Lane
    job: AnyJob
    step: Step | RemovalStep
    since_ns: int
    """time.monotonic_ns at the start."""


class Line:
    """The backlog, the snapshot and the work under way: all state there is, but for the kernel's."""

    def __init__(self, tree: Tree, journal: Journal, loaders: Loaders | None) -> None:
        """`loaders` None: a dry run, nothing is handed to anybody."""
        self._tree = tree
        self.report = Report(journal)
        self._loaders = loaders
        self._backlog = Backlog()
        self._answers = Answers()
        self._snapshot: TreeSnapshot | None = None
        self._loaded: Loaded | None = None
        self._lane: Lane | None = None
        self._replay_wanted = False
        self.work: Work | None = None
        self.boot_left = 0
        """So many of the boot list are not answered yet."""
        self._crashed: set[str] = set()
        """Names that the kernel keeps in state coming until the next boot: to load one again would block for ever."""
        self._boot_names: set[str] = set()
        self._look_for_loader = 0.0
        """When (time.monotonic) a loader is worth another try."""
        self.no_loader = ""
        """Why no loader was to be had; empty: there was one, or none was needed."""
        self.no_tree = ""
        """Why there is no snapshot; empty: there is one."""

    # -- what goes in ------------------------------------------------------------------------------------------

    def take(self, event: Uevent, origin: Origin) -> None:
        """An event: what it makes us want waits from now on."""
        self.report.counters.events += origin == "uevent"
        if event.subsystem == "module":
            self._loaded = None
            if event.action == "remove":
                self._answers.forget_modules()
        for request in wanted(event, origin):
            if not self._backlog.add(request):
                self._replay_wanted = True

    def coldplug(self, events: Iterable[Uevent]) -> None:
        """The devices that were there before us. Each alias is answered; the end of it is told once."""
        self.report.begin_coldplug()
        self._replay_wanted = False
        for event in events:
            self.report.coldplug_device()
            self.take(event, "coldplug")

    def boot(self, listed: BootList) -> None:
        """What is listed to be loaded at boot: taken like any other request, told like any other; each name once."""
        for problem in listed.problems:
            self.report.complain(problem)
        for module in listed.modules:
            if module.name not in self._boot_names:
                self._boot_names.add(module.name)
                self.boot_left += self._backlog.add(Request(module.name, "boot", at=module.at))

    def order(self, request: Request) -> bool:
        """A request that somebody waits for. False: no room."""
        return self._backlog.add(request)

    def events_were_lost(self) -> None:
        """What we know of the kernel's modules may be old, and devices may have come: sysfs is to be replayed."""
        self.report.counters.overruns += 1
        self._replay_wanted = True
        self._loaded = None
        self._answers.forget_modules()
        message = "The kernel dropped events: all devices are looked at again"
        self.report.tell(Record(telling.OVERRUN, telling.WARNING, message))

    # -- what state it is in -----------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Requests in the backlog."""
        return len(self._backlog)

    @property
    def can_advance(self) -> bool:
        """`advance` would do something now."""
        if self.no_loader and time.monotonic() < self._look_for_loader:
            return False
        return self.work is None and self._snapshot is not None and len(self._backlog) > 0

    @property
    def idle(self) -> bool:
        """Nothing is under way, and nothing waits that could be done."""
        return self.work is None and not self.can_advance

    @property
    def quiet(self) -> bool:
        """Nothing is under way, nothing waits, and no replay is due: everything asked for is answered."""
        return self.work is None and not len(self._backlog) and not self._replay_wanted

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """Connections to loaders, to be watched."""
        spare = self._loaders.spare if self._loaders else None
        return tuple(lane for lane in (self._lane, spare) if lane is not None)

    def takes_replay(self) -> bool:
        """Events were lost, or the index changed: sysfs is to be replayed now. Asking resets it."""
        due = self.replay_is_due
        self._replay_wanted = self._replay_wanted and not due
        return due

    @property
    def replay_is_due(self) -> bool:
        """`takes_replay` would say yes."""
        return self._replay_wanted and not self._backlog.is_full()

    # -- the snapshot ------------------------------------------------------------------------------------------

    def reload(self) -> Sequence[Problem]:
        """Read indexes and configuration again: all of the new or all of the old. The answer: lines without use."""
        settings = read_settings(self._tree.root)
        before = self._tree.beyond, self._tree.notice_edits
        self._tree.beyond, self._tree.notice_edits = settings.beyond, settings.notice_edits
        try:
            snapshot = self._tree.snapshot()
        except NoTree as error:
            self._tree.beyond, self._tree.notice_edits = before
            if not self.no_tree:
                self.report.tell(Record(telling.NO_TREE, telling.ERR, str(error)))
            self.no_tree = str(error)
            return ()
        self.no_tree = ""
        old, self._snapshot = self._snapshot, snapshot
        if old is None or old.marks != snapshot.marks or before != (settings.beyond, settings.notice_edits):
            self._answers.forget_index()
        self._replay_wanted = True
        problems = settings.problems + snapshot.problems
        for problem in problems:
            self.report.complain(problem)
        return problems

    def refresh(self) -> None:
        """Read again what changed on disk since it was read; nothing else costs more than a few stat calls."""
        old = self._snapshot
        if old is not None and not self.no_tree and self._tree.is_current(old):
            return
        self.reload()
        if old is not None and not self.no_tree:
            message = "The module index or configuration changed: read again"
            self.report.tell(Record(telling.RELOADED, telling.INFO, message))

    def plan(self, request: Request) -> Plan:
        """What would be done for `request` now. Raises NoTree."""
        if self._snapshot is None:
            raise NoTree(self.no_tree)
        loaded = self._loaded or self._tree.loaded()
        self._loaded = loaded
        return resolve(request, self._snapshot, loaded, manner_of(request.origin), self._tree.present)

    # -- the line ----------------------------------------------------------------------------------------------

    def advance(self) -> list[AnyJob]:
        """Resolve what waits, one request after the other, until one needs a loader. The answer: jobs that ended."""
        ended: list[AnyJob] = []
        if self.work is not None or not (len(self._backlog) or self.no_tree):
            return ended
        if self.no_loader and time.monotonic() < self._look_for_loader:
            return ended
        self.refresh()
        if self._snapshot is None:
            return ended
        for _ in range(BATCH):
            request = self._backlog.take()
            if request is None:
                break
            if request.synthetic and self._answers.knows(request.text):
                self.report.counters.repeats += 1
                continue
            job = self._job(request)
            if self._drive(job):
                ended.append(job)
            else:
                break  # its step is with a loader, or there is none to be had
        return ended

    def heard(self, lane: Lane) -> list[AnyJob]:
        """A loader said something or is gone. The answer: jobs that ended with it."""
        if lane not in self.lanes:
            return []  # let go of earlier in this round
        heard = lane.receive()
        work = self.work
        if isinstance(heard, Died) and self._loaders:
            self._loaders.lost(lane)
            self._lane = None if lane is self._lane else self._lane
        if heard is None or work is None or lane is not work.lane:
            return []
        self.work = None
        self._loaded = None
        if heard == Died(begun=False):
            return [work.job] if self._drive(work.job) else []
        work.job.finish(self._outcome(work, heard))
        return [work.job] if self._drive(work.job) else []

    def _job(self, request: Request) -> AnyJob:
        """What is to be done for `request` now, not yet begun. Raises NoTree."""
        if request.removing is None:
            return Job(self.plan(request))
        if self._snapshot is None:
            raise NoTree(self.no_tree)
        plan = plan_removal(request, self._snapshot, self._tree.loaded(), self._tree.present)
        return RemovalJob(plan, self._tree.loaded)

    def _next_step(self, job: AnyJob) -> Step | RemovalStep | None:
        if isinstance(job, RemovalJob):
            return job.next_step()
        return job.next_step(lambda step: self._known(job.plan.request, step))

    def _drive(self, job: AnyJob) -> bool:
        """Go on with a job. True: it is through. False: its next step is with a loader."""
        if self._loaders is None:
            job.abandon(telling.DRY_RUN)
        while step := self._next_step(job):
            try:
                lane, why = self._hand_over(call_of(step, self._tree.real))
            except ValueError as error:  # longer than a loader takes
                job.abandon(str(error))
                continue
            if lane is not None:
                self.work = Work(lane, job, step, time.monotonic_ns())
                break
            self._miss_loader(why)
            if job.plan.request.origin != "operator":
                # Requests wait, nobody is turned away: it is planned anew once there is a loader.
                self._backlog.put_back(job.plan.request)
                break
            job.abandon(why)
        else:
            if isinstance(job, Job):
                if job.plan.request.origin != "operator":  # with parameters of his own; he may be refused for these
                    self._answers.learn(job.plan.request.text, job.outcomes)
                self.boot_left -= job.plan.request.origin == "boot"
            else:
                self._answers.forget_modules()
            self.report.outcomes(job.untold(), self._answers)
            return True
        self.report.outcomes(job.untold(), self._answers)
        return False

    def _miss_loader(self, why: str) -> None:
        if not self.no_loader:
            message = f"Nothing can be loaded now: {why}; what is wanted waits"
            self.report.tell(Record(telling.NO_LOADER, telling.ERR, message))
        self.no_loader = why
        self._look_for_loader = time.monotonic() + LOOK_FOR_LOADER

    def _hand_over(self, call: Call) -> tuple[Lane | None, str]:
        """Give a call to the loader we have, else to a new one. No lane: why there is none. Raises ValueError."""
        assert self._loaders is not None
        for _ in range(3):  # the one at work and the spare may both be gone
            try:
                self._lane = self._lane or self._loaders.get()
                if self._lane.start(call):
                    self.no_loader = ""
                    return self._lane, ""
            except OSError as error:
                self._lane = None
                return None, f"no loader: {error}"
            self._loaders.lost(self._lane)
            self._lane = None
        return None, "no loader: each one is gone at once"

    def _outcome(self, work: Work, heard: Reply | Died) -> Outcome:
        """What a loader's answer means for its step."""
        step, request = work.step, work.job.plan.request
        if isinstance(heard, Reply):
            beyond = self._snapshot.config.beyond if self._snapshot else DROP_IN
            if heard.stage == "signal" and not beyond.install_signal_is_failure:
                heard = replace(heard, errno=0)  # kmod looks at the exit status alone (libkmod, command_do)
            return outcome_of(request, step, heard)
        usec = (time.monotonic_ns() - work.since_ns) // 1000
        outcome = outcome_of_death(request, step, self._tree.loaded().state(step.module), usec)
        if outcome.result == "crashed":
            self._crashed.add(step.module)
        return outcome

    def _known(self, request: Request, step: Step) -> Outcome | None:
        """What comes of a step that need not be tried."""
        self._loaded = self._loaded or self._tree.loaded()
        if self._loaded.state(step.module) == "live":
            return Outcome(request, step.module, "live", step.because)
        if step.module in self._crashed:
            detail = " before, and is not tried again until the next boot"
            return Outcome(request, step.module, "crashed", step.because, detail=detail)
        refusal = self._answers.refusal(step.module)
        if refusal and request.synthetic:
            detail = f"it has refused with {errno.errorcode[refusal]}"
            return Outcome(request, step.module, "not_attempted", step.because, errno=refusal, detail=detail)
        return None

    def close(self) -> None:
        """Let the loaders go; one that is in a module's init ends after it."""
        for lane in self.lanes:
            with contextlib.suppress(OSError):
                lane.close()
