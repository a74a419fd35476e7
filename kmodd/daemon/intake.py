"""What comes in and waits: events, the boot list, orders. An `Intake`.

Devices wait in the backlog, where equal wishes are one; whoever waits for an answer has his turn among his like.
"""

from __future__ import annotations

import os

from kmodd.config.modules_load_d import BootList
from kmodd.daemon.reporter import Reporter
from kmodd.daemon.system_state import SystemState
from kmodd.dataclass import replace
from kmodd.kernel.uevent import Uevent
from kmodd.planning.record import OVERRUN, WARNING, Record
from kmodd.planning.request import Origin, Request, coldplug_turn, wanted
from kmodd.state.autoclean import Autoclean
from kmodd.state.quarantine import Quarantine
from kmodd.state.queue import DeviceQueue, FairQueue
from kmodd.state.result_cache import ResultCache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Literal

    Replay = Literal["", "all", "drift"]
    """What of sysfs is to be looked at again: nothing, every device, those without a driver."""


class Intake:
    """All that nobody has begun with."""

    def __init__(
        self, report: Reporter, view: SystemState, standing: Quarantine, answers: ResultCache, autoclean: Autoclean
    ) -> None:
        self._report = report
        self._view = view
        self._standing = standing
        self._answers = answers
        self._autoclean = autoclean
        self.backlog = DeviceQueue()
        self.turns = FairQueue()
        self.uuid = "-".join(os.urandom(size).hex() for size in (4, 2, 2, 2, 6))
        """Stands in the events that we have devices say."""
        self.replay: Replay = ""
        self.boot_left: set[str] = set()
        """Names of the boot list that are not answered yet."""
        self._boot_names: set[str] = set()

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self.backlog) + len(self.turns)

    def take(self, event: Uevent, origin: Origin, *, drift: bool = False) -> None:
        """An event: what it makes us want waits from now on. `drift`: it is one of a look for missing drivers."""
        self._report.counters.events += origin == "uevent"
        if event.synthetic and event.get("SYNTH_UUID") == self.uuid:
            # Nobody's wish but ours: it is one of a look at what is there, and fights no operator.
            origin = "coldplug" if self._report.in_coldplug else "reconcile"
        if event.subsystem == "module":
            self._module_came_or_went(event)
        elif event.action == "remove":
            self._standing.leave(event.devpath)
        for request in wanted(event, origin):
            if not self.backlog.add(replace(request, drift=True) if drift else request):
                self.replay = "all"

    def _module_came_or_went(self, event: Uevent) -> None:
        if event.action == "add" and not event.synthetic:
            self._view.came(event.sysname)
            self._standing.load(event.sysname)
        elif event.action == "remove":
            self._view.outdate()
            self._standing.remove(event.sysname)
            self._autoclean.gone(event.sysname)  # if it is back at the next look, somebody else has brought it
            self._answers.forget_modules()

    def coldplug(self, events: Iterable[Uevent]) -> None:
        """The devices that were there before us. Each alias is answered; the end of it is told once."""
        self._report.begin_coldplug()
        self.replay = ""
        lanes = self._view.settings.lanes
        for event in sorted(events, key=lambda event: coldplug_turn(event, lanes)):
            self._report.coldplug_device()
            self.take(event, "coldplug")

    def boot(self, listed: BootList) -> None:
        """What is listed to be loaded at boot: taken like any other request, told like any other; each name once."""
        for problem in listed.problems:
            self._report.complain(problem)
        for module in listed.modules:
            if module.name not in self._boot_names:
                self._boot_names.add(module.name)
                self.backlog.add(Request(module.name, "boot", at=module.at))
                self.boot_left.add(module.name)

    def again(self, request: Request, *, first: bool = False) -> None:
        """One that was taken before comes again; `first`: before all others. Where there is no room, by a replay."""
        self._answers.forget(request.text)
        if not (self.backlog.put_back(request) if first else self.backlog.add(request)):
            self.replay = "all"

    def order(self, request: Request) -> bool:
        """A request that somebody waits for. False: no room."""
        return self.turns.add(request)

    def events_were_lost(self) -> None:
        """What we know of the kernel's modules may be old, and devices may have come: sysfs is to be replayed."""
        self._report.counters.overruns += 1
        self.replay = "all"
        self._view.outdate()
        self._answers.forget_modules()
        message = "The kernel dropped events: all devices are looked at again"
        self._report.tell(Record(OVERRUN, WARNING, message))

    def takes_replay(self) -> Replay:
        """What of sysfs is to be replayed now: events were lost, the index changed, it is time. Asking resets it."""
        due = self.replay_is_due
        if due:
            self.replay = ""
        return due

    @property
    def replay_is_due(self) -> Replay:
        """What `takes_replay` would say."""
        return "" if self.backlog.is_full() else self.replay
