"""What we want: a `Request`, and the `Backlog` in which requests wait.

The backlog is the only gap in the line. It holds requests, not plans: they are small, equal ones
become one, and resolving at the last moment sees what the plan before has just loaded.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass, replace
from kmodd.errors import Where
from kmodd.index import fnmatch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import OrderedDict, deque
    from typing import Literal

    from kmodd.kernel.requester import Requester
    from kmodd.kernel.uevent import Uevent

    Origin = Literal["uevent", "coldplug", "request", "boot", "operator", "reconcile"]
    """Who wants it; the value of the journal field KMODD_SOURCE."""
else:
    Origin = str

ORIGINS: tuple[Origin, ...] = ("uevent", "coldplug", "request", "boot", "operator", "reconcile")
"""All of them."""

MAX_DEVICES = 16
"""So many device paths are kept by name; of the rest only the count (INTERFACE, Journal)."""


@dataclass(frozen=True, slots=True)
class Removing:
    """How a module is to be taken out (modprobe -r and its options)."""

    first_time: bool = False
    """One that the kernel does not have is a failure."""
    ends_at_failure: bool = True
    """The first module that is builtin, in use or not there ends all, as modprobe's FATAL does; with -a or -q not."""
    ignore_commands: bool = False
    """No remove commands and no softdeps."""
    holders: bool = False
    """Modules that use it go first."""
    waits: bool = False
    """It may be in use for a while: the kernel is asked all the same, again and again."""
    ignore_loaded: bool = False
    """As if the kernel had it and nothing used it (modprobe -D)."""
    only_deps: tuple[str, ...] | None = None
    """Of its softdeps, and of its dependencies that nothing uses any more, only these may go; None: all."""
    idle_sec: int = 0
    """It goes because nothing has used it for so many seconds; 0: somebody asked."""


@dataclass(frozen=True, slots=True)
class Request:
    """One wish: make `text` loaded, or have it removed."""

    text: str
    """Exactly as it came: a modalias, a module's name, an alias, a name the kernel asked for."""
    origin: Origin
    devices: tuple[str, ...] = ()
    """Device paths (`/devices/…`) that the wish is for, at most MAX_DEVICES."""
    device_count: int = 0
    """How many devices in all."""
    more_devices: tuple[str, ...] = ()
    """Paths of those beyond MAX_DEVICES, as far as they are known. They are judged, and not recorded."""
    params: tuple[str, ...] = ()
    """An operator's module parameters."""
    at: Where | None = None
    """boot: the line that lists it."""
    synthetic: bool = False
    """No device came: sysfs was read, or somebody wrote to a `uevent` file. A known answer will do."""
    removing: Removing | None = None
    """An operator's wish to have it removed; None: it is to be loaded."""
    subsystem: str = ""
    """Of the device that it is for (`pci`, `usb`); empty: for none."""
    requester: Requester | None = None
    """request: the process that made the kernel ask; None: unknown, which is never a guess."""
    again: bool = False
    """It is tried once more: what kept it from coming in may be over."""
    drift: bool = False
    """reconcile: it was found by the look at devices without a driver that comes from time to time."""

    @property
    def all_devices(self) -> tuple[str, ...]:
        """All whose paths are known."""
        return self.devices + self.more_devices

    @property
    def waited_for(self) -> bool:
        """Somebody waits for the answer: it has a lane of its own, and is never one with another."""
        return self.origin in ("operator", "request")


@dataclass(frozen=True, slots=True)
class LoadRule:
    """One of udevd's load rules that does not go by `kmod load` with the MODALIAS alone (systemd 80-drivers.rules)."""

    subsystem: str
    """Empty: any."""
    sysname: str
    """An fnmatch pattern of the kernel's name; empty: any."""
    key: str
    """A property that must match `value`; empty: none needed."""
    value: str
    """An fnmatch pattern."""
    modules: tuple[str, ...]


LOAD_RULES = (
    LoadRule("tifm", "", "TIFM_CARD_TYPE", "SD", ("tifm_sd",)),
    LoadRule("tifm", "", "TIFM_CARD_TYPE", "MS", ("tifm_ms",)),
    LoadRule("memstick", "", "", "", ("ms_block", "mspro_block")),
    LoadRule("module", "parport_pc", "", "", ("ppdev",)),
    # MTD_FTL is not the kernel's: udev's mtd_probe finds it out, so it is there only in an event that carries it on.
    LoadRule("mtd", "mtd*ro", "MTD_FTL", "smartmedia", ("sm_ftl",)),
    # Debian's 80-debian-compat.rules, for old tape drivers (Debian bug 657948): every SCSI device, none else has it.
    LoadRule("scsi", "", "MODALIAS", "scsi:t-*", ("sg",)),
)


def wanted(event: Uevent, origin: Origin) -> tuple[Request, ...]:
    """What one event makes us want; nothing for any action but `add`.

    Since kernel 4.14 sends `bind` and `unbind`, loading on every action would bring a driver
    that was just removed straight back (systemd pull request 6802).
    """
    if event.action != "add":
        return ()
    texts = list(event.modaliases)
    for rule in LOAD_RULES:
        if (
            (not rule.subsystem or rule.subsystem == event.subsystem)
            and (not rule.sysname or fnmatch.matches(rule.sysname, event.sysname))
            and (not rule.key or fnmatch.matches(rule.value, event.get(rule.key)))
        ):
            texts.extend(rule.modules)
    return tuple(
        Request(text, origin, (event.devpath,), 1, synthetic=event.synthetic, subsystem=event.subsystem)
        for text in texts
    )


_USB_HOST = "bc0Csc03"
"""Base class and subclass in a PCI modalias (pci.ids: Serial bus controller, USB controller)."""
_STORAGE = "bc01sc"
"""Base class (pci.ids: Mass storage controller)."""


def coldplug_turn(event: Uevent, lanes: int) -> int:
    """When it is the turn of a device that was there before us; the lower the earlier, `lanes` for devices.

    Behind a USB host devices appear only a second after its driver has come. A processor asks for a dozen modules, one
    after the other: it would be the last, alone, with all other lanes idle. Drivers of disks look for them while others
    run, which every load waits for at its end (do_init_module): side by side they wait for each other only once; and
    disks are what a boot waits for.
    """
    classes = [alias for alias in event.modaliases if alias.startswith("pci:")]
    if any(_USB_HOST in alias for alias in classes):
        return 0
    if lanes > 1 and event.subsystem == "cpu":
        return 1
    return 2 if any(_STORAGE in alias for alias in classes) else 3


@dataclass(slots=True)
class _Waiting:
    """One entry of the backlog: a request, and every device that has the same wish."""

    request: Request
    devices: dict[str, None]
    """All that are known by name, in the order they came."""
    uncounted: int = 0
    """Devices beyond MAX_NAMES: they may be counted twice."""


def _weight(request: Request) -> int:
    """Of two equal wishes the one with more weight stands for both: what only a look wants may be kept out."""
    if not request.synthetic:
        return 2
    return 0 if request.origin == "reconcile" else 1


MAX_NAMES = 4096
"""Device names that one entry of the backlog keeps, so that memory is bounded while a loader is stuck."""


class Backlog:
    """Requests that wait, first come first served; equal ones of devices are one.

    What comes now, and the boot list, go before what a look at all that is there has found: a device behind a bus that
    coldplug has just brought up need not wait for the end of coldplug.

    Bounded by what differs: devices cannot make more entries than they have aliases. Beyond `limit` entries a
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


class Turns:
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
