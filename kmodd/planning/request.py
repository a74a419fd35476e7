"""What is wanted: a `Request`, and what an event makes the daemon want."""

from __future__ import annotations

from kmodd.dataclass import dataclass
from kmodd.errors import Where
from kmodd.index import fnmatch

TYPE_CHECKING = False
if TYPE_CHECKING:
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
"""So many device paths are kept by name; of the rest only the count (KMODD_DEVPATH)."""


@dataclass(frozen=True, slots=True)
class RemovalOptions:
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
    removing: RemovalOptions | None = None
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
