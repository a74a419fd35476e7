"""Where requests wait: devices in a `DeviceQueue`, callers in a `FairQueue`.

Requests wait, not plans: they are small, equal ones become one, and resolving at the last moment sees what the plan
before has just loaded.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass, replace
from kmodd.planning.request import MAX_DEVICES, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import OrderedDict, deque


@dataclass(slots=True)
class _Waiting:
    """One entry of the backlog: a request, and every device that has the same wish."""

    request: Request
    devices: dict[str, None]
    """All that are known by name, in the order they came."""
    uncounted: int = 0
    """Devices beyond MAX_NAMES: they may be counted twice."""


def _weight(request: Request) -> int:
    """Of two equal requests the one with more weight stands for both: what only a look wants may be kept out."""
    if not request.synthetic:
        return 2
    return 0 if request.origin == "reconcile" else 1


MAX_NAMES = 4096
"""Device names that one entry of the backlog keeps, so that memory is bounded while a loader is stuck."""


class DeviceQueue:
    """Requests that wait, first come first served; equal ones of devices are one.

    What comes now, and the boot list, go before what a look at all that is there has found: a device behind a bus that
    coldplug has just brought up need not wait for the end of coldplug.

    Bounded by what differs: devices cannot make more entries than they have aliases. Extensions `limit` entries a
    new one is refused, and the caller replays sysfs once there is room again.
    """

    def __init__(self, limit: int = 16384) -> None:
        from collections import OrderedDict  # only here: a tool has no backlog

        self._soon: OrderedDict[str, _Waiting] = OrderedDict()
        self._later: OrderedDict[str, _Waiting] = OrderedDict()
        self._limit = limit

    def __len__(self) -> int:
        return len(self._soon) + len(self._later)

    def is_full(self) -> bool:
        """More than half of the room is taken: not the moment for a replay."""
        return 2 * len(self) > self._limit

    def add(self, request: Request) -> bool:
        """Queue `request`, or join it to an equal one. False: no room."""
        queue = self._later if request.synthetic else self._soon
        entry = self._soon.get(request.text) or self._later.get(request.text)
        if entry is None:
            if len(self) >= self._limit and request.origin != "boot":
                return False  # no replay would bring the boot list again, and it is not long
            entry = queue[request.text] = _Waiting(request, {})
        elif _weight(request) > _weight(entry.request):
            entry.request = request
            if queue is self._soon and request.text in self._later:
                queue[request.text] = self._later.pop(request.text)
        entry.uncounted += max(0, request.device_count - len(request.all_devices))
        for device in request.all_devices:
            if len(entry.devices) < MAX_NAMES:
                entry.devices[device] = None
            elif device not in entry.devices:
                entry.uncounted += 1
        return True

    def put_back(self, request: Request) -> bool:
        """The one that was taken last is not to be had yet: it comes first again. False: no room."""
        has_room = self.add(request)
        if has_room:
            queue = self._soon if request.text in self._soon else self._later
            queue.move_to_end(request.text, last=False)
        return has_room

    def take(self) -> Request | None:
        """The one that has waited longest, for all devices that joined it; None: nothing waits."""
        queue = self._soon or self._later
        if not queue:
            return None
        _, entry = queue.popitem(last=False)
        devices = tuple(entry.devices)
        count = len(devices) + entry.uncounted
        first, more = devices[:MAX_DEVICES], devices[MAX_DEVICES:]
        return replace(entry.request, devices=first, device_count=count, more_devices=more)


class FairQueue:
    """Requests that somebody waits for. Who asks often waits for his own: one user after the other has his turn."""

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._waiting: dict[object, deque[Request]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, request: Request) -> bool:
        """Queue it behind its requester's others. False: no room."""
        if self._count >= self._limit:
            return False
        asker = request.requester.uid if request.requester else request.origin
        from collections import deque  # only here, as above

        self._waiting.setdefault(asker, deque()).append(request)
        self._count += 1
        return True

    def has(self, *, operators: bool) -> bool:
        """`take` would give one."""
        return self._next(operators) is not None

    def waiting(self) -> list[Request]:
        """All of them."""
        return [request for queue in self._waiting.values() for request in queue]

    def take(self, *, operators: bool) -> Request | None:
        """The next one; its requester's turn comes again when all others had theirs. `operators`: theirs, too."""
        asker = self._next(operators)
        if asker is None:
            return None
        queue = self._waiting[asker]
        request = queue.popleft()
        self._count -= 1
        if queue:
            self._waiting[asker] = self._waiting.pop(asker)
        else:
            del self._waiting[asker]
        return request

    def _next(self, operators: bool) -> object | None:
        return next((asker for asker in self._waiting if operators or asker != "operator"), None)
