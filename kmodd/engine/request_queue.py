"""Requests that wait for their turn: of uevents, coldplug, the boot list and callers. A `RequestQueue`.

Requests of devices wait in the device queue, where equal ones are merged; those of callers in a fair queue by user.
"""

from __future__ import annotations

from kmodd.config.modules_load_d import BootList
from kmodd.dataclass import replace
from kmodd.kernel.uevent import Uevent
from kmodd.planning.device_requests import coldplug_turn, wanted
from kmodd.planning.request import Origin, Request
from kmodd.state.queue import DeviceQueue, FairQueue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from kmodd.engine.events import Replay


class RequestQueue:
    """All requests that have not begun."""

    def __init__(self) -> None:
        self.devices = DeviceQueue()
        self.interactive = FairQueue()
        self.boot_left: set[str] = set()
        """Names of the boot list that are not answered yet."""
        self.replay: Replay | None = None
        """The replay of sysfs that is due."""
        self._boot_turns: dict[str, int] = {}
        """Name of the boot list → its turn."""
        self._now = 0.0

    def __len__(self) -> int:
        """Number of requests."""
        return len(self.devices) + len(self.interactive)

    def set_time(self, now: float) -> None:
        """The time of the current event (monotonic, seconds)."""
        self._now = now

    def add_event(self, event: Uevent, origin: Origin, *, drift: bool = False) -> None:
        """Queue what the event asks for. `drift`: it belongs to a search for devices without a driver."""
        for request in wanted(event, origin):
            self.add(replace(request, drift=drift, since=self._now))

    def add_coldplug(self, events: Iterable[Uevent], lanes: int) -> None:
        """Queue the devices that were there at the start, with those first that others wait for."""
        self.replay = None
        for event in sorted(events, key=lambda event: coldplug_turn(event, lanes)):
            self.add_event(event, "coldplug")

    def add_boot_list(self, listed: BootList) -> None:
        """Queue the modules of the boot list, each name once since the start."""
        for module in listed.modules:
            if module.name not in self._boot_turns:
                self._boot_turns[module.name] = len(self._boot_turns)
                self.devices.add(Request(module.name, "boot", at=module.at, since=self._now))
                self.boot_left.add(module.name)

    def add(self, request: Request, *, first: bool = False) -> None:
        """Queue a request of a device; `first`: before all others. Without room, all devices are replayed later."""
        if not (self.devices.put_back(request) if first else self.devices.add(request)):
            self.replay = "all"

    def add_interactive(self, request: Request) -> bool:
        """Queue a request that a caller waits for. False: there is no room."""
        return self.interactive.add(request)

    def is_earlier(self, one: Request, other: Request) -> bool:
        """Whether `one` stands before `other` in the same file of the boot list."""
        if not one.origin == other.origin == "boot" or (one.at and one.at.file) != (other.at and other.at.file):
            return False
        return self._boot_turns[one.text] < self._boot_turns[other.text]

    def answer_boot(self, name: str) -> None:
        """A request is answered: if the boot list has its name, that is."""
        self.boot_left.discard(name)

    def request_replay(self, replay: Replay) -> None:
        """Have sysfs read again; every device wins over those without a driver."""
        self.replay = "all" if "all" in (replay, self.replay) else replay

    def cancel_replay(self) -> None:
        """What was to be replayed was read meanwhile, or must not be."""
        self.replay = None

    @property
    def replay_is_due(self) -> bool:
        """Whether sysfs is to be read again now: there is room for what it brings."""
        return self.replay is not None and not self.devices.is_full()

    def pop_replay(self) -> Replay | None:
        """Take the replay that is due; None: there is none, or no room for it."""
        if not self.replay_is_due:
            return None
        due, self.replay = self.replay, None
        return due
