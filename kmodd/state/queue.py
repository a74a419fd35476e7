"""Queues of requests: `DeviceQueue` for those of devices, `FairQueue` for those with a waiting caller.

They hold requests, not plans: requests are small and can be merged, and a request that is resolved late takes into
account what the previous plan loaded.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass, replace
from kmodd.planning.request import MAX_DEVICES, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import OrderedDict, deque


@dataclass(slots=True)
class _Entry:
    """An entry of the queue: a request, and all devices that made it."""

    request: Request
    devices: dict[str, None]
    """Device paths, in order of arrival."""
    uncounted: int = 0
    """Number of devices whose paths are not kept; one may be counted twice."""


def _weight(request: Request) -> int:
    """Return the rank of a request. Of equal requests the highest counts, as a replay may be refused (`Quarantine`)."""
    if not request.synthetic:
        return 2
    return 0 if request.origin == "reconcile" else 1


MAX_NAMES = 4096
"""Limit of device paths per entry, which bounds memory while a loader is stuck."""


class DeviceQueue:
    """First-in, first-out queue of requests that merges requests with the same text.

    Requests of new devices and of the boot list precede those of a replay of sysfs: a device behind a bus that coldplug
    has just brought up need not wait for the end of coldplug.

    The number of entries is bounded by the number of different aliases. Beyond `limit` entries a new one is refused,
    and the caller replays sysfs once there is room.
    """

    def __init__(self, limit: int = 16384) -> None:
        from collections import OrderedDict  # imported late, as the tools have no queue

        self._soon: OrderedDict[str, _Entry] = OrderedDict()
        self._later: OrderedDict[str, _Entry] = OrderedDict()
        self._limit = limit

    def __len__(self) -> int:
        return len(self._soon) + len(self._later)

    def is_full(self) -> bool:
        """Return whether more than half of the limit is used, too much to start a replay."""
        return 2 * len(self) > self._limit

    def add(self, request: Request) -> bool:
        """Queue `request`, or merge it into an equal one. Return False if the queue is full."""
        queue = self._later if request.synthetic else self._soon
        entry = self._soon.get(request.text) or self._later.get(request.text)
        if entry is None:
            if len(self) >= self._limit and request.origin != "boot":
                return False  # the boot list is exempt: no replay repeats it, and it is short
            entry = queue[request.text] = _Entry(request, {})
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
        """Return a taken request to the head of the queue. Return False if the queue is full."""
        has_room = self.add(request)
        if has_room:
            queue = self._soon if request.text in self._soon else self._later
            queue.move_to_end(request.text, last=False)
        return has_room

    def has_device(self, path: str) -> bool:
        """Return whether a request of the device at `path` waits; those beyond MAX_NAMES are not known."""
        return any(path in entry.devices for queue in (self._soon, self._later) for entry in queue.values())

    def take(self) -> Request | None:
        """Remove and return the first request, with all its devices; None if the queue is empty."""
        queue = self._soon or self._later
        if not queue:
            return None
        _, entry = queue.popitem(last=False)
        devices = tuple(entry.devices)
        count = len(devices) + entry.uncounted
        first, more = devices[:MAX_DEVICES], devices[MAX_DEVICES:]
        return replace(entry.request, devices=first, device_count=count, more_devices=more)


class FairQueue:
    """Queue of requests with a waiting caller, which serves users in turn.

    The requests of one user keep their order, so a user with many requests delays only their own. Operators count as
    one user, as do unknown processes that made the kernel ask.
    """

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._waiting: dict[object, deque[Request]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, request: Request) -> bool:
        """Queue `request` after the others of its user. Return False if the queue is full."""
        if self._count >= self._limit:
            return False
        user = request.requester.uid if request.requester else request.origin
        from collections import deque  # imported late, as above

        self._waiting.setdefault(user, deque()).append(request)
        self._count += 1
        return True

    def has(self, *, operators: bool) -> bool:
        """Return whether `take` would return a request. operators: also consider operators' requests."""
        return self._next(operators) is not None

    def waiting(self) -> list[Request]:
        """Return all queued requests."""
        return [request for queue in self._waiting.values() for request in queue]

    def take(self, *, operators: bool) -> Request | None:
        """Remove and return the next request, None without one; its user is served again after all others.

        operators: also take operators' requests.
        """
        user = self._next(operators)
        if user is None:
            return None
        queue = self._waiting[user]
        request = queue.popleft()
        self._count -= 1
        if queue:
            self._waiting[user] = self._waiting.pop(user)
        else:
            del self._waiting[user]
        return request

    def _next(self, operators: bool) -> object | None:
        return next((user for user in self._waiting if operators or user != "operator"), None)
