"""Requests to load or remove modules, and the requests that follow from a uevent."""

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
    """Source of a request; the value of the journal field KMODD_SOURCE."""
else:
    Origin = str

ORIGINS: tuple[Origin, ...] = ("uevent", "coldplug", "request", "boot", "operator", "reconcile")
"""All origins."""

MAX_DEVICES = 16
"""Limit of device paths in a journal record (KMODD_DEVPATH); further devices are only counted."""


@dataclass(frozen=True, slots=True)
class RemovalOptions:
    """Options of a removal, as of `modprobe -r`."""

    first_time: bool = False
    """A module that is not loaded is a failure."""
    ends_at_failure: bool = True
    """The first module that is builtin, in use or not loaded ends the job, as FATAL does; not with -a or -q."""
    ignore_commands: bool = False
    """Ignore remove commands and softdeps."""
    holders: bool = False
    """Remove modules that use the module first."""
    waits: bool = False
    """Call the kernel even if the module is in use, and repeat until it is removed."""
    ignore_loaded: bool = False
    """Assume that the module is loaded and unused (modprobe -D)."""
    only_deps: tuple[str, ...] | None = None
    """The softdeps and unused dependencies that may be removed too; None: all."""
    idle_sec: int = 0
    """Autoclean: seconds that the module was unused; 0: the removal was requested."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request to load or remove the modules that `text` names."""

    text: str
    """Modalias, module name, alias, or a name that the kernel requested; unchanged."""
    origin: Origin
    devices: tuple[str, ...] = ()
    """Paths (`/devices/…`) of the requesting devices, at most MAX_DEVICES."""
    device_count: int = 0
    """Number of all requesting devices."""
    more_devices: tuple[str, ...] = ()
    """Known paths of devices beyond MAX_DEVICES; policy considers them, the journal omits them."""
    params: tuple[str, ...] = ()
    """operator: module parameters."""
    at: Where | None = None
    """boot: the line that lists the module."""
    synthetic: bool = False
    """No new device: sysfs was replayed, or a `uevent` file was written. A cached result suffices."""
    removing: RemovalOptions | None = None
    """Options of a removal; None: load."""
    subsystem: str = ""
    """Subsystem of the device (`pci`, `usb`); empty: no device."""
    requester: Requester | None = None
    """request: the process that made the kernel ask; None: unknown."""
    again: bool = False
    """Whether this is a retry."""
    drift: bool = False
    """reconcile: the periodic search for devices without a driver made the request."""

    @property
    def all_devices(self) -> tuple[str, ...]:
        """All known paths of devices."""
        return self.devices + self.more_devices

    @property
    def is_interactive(self) -> bool:
        """Whether a caller waits for the result: the request has a lane of its own and is never merged with another."""
        return self.origin in ("operator", "request")


@dataclass(frozen=True, slots=True)
class LoadRule:
    """A rule of udevd that loads modules by other properties than MODALIAS alone (systemd 80-drivers.rules)."""

    subsystem: str
    """Empty: any."""
    sysname: str
    """fnmatch(3) pattern of the kernel's device name; empty: any."""
    key: str
    """Property that must match `value`; empty: none."""
    value: str
    """fnmatch(3) pattern."""
    modules: tuple[str, ...]
    """Modules to load."""


LOAD_RULES = (
    LoadRule("tifm", "", "TIFM_CARD_TYPE", "SD", ("tifm_sd",)),
    LoadRule("tifm", "", "TIFM_CARD_TYPE", "MS", ("tifm_ms",)),
    LoadRule("memstick", "", "", "", ("ms_block", "mspro_block")),
    LoadRule("module", "parport_pc", "", "", ("ppdev",)),
    # MTD_FTL is set by udev's mtd_probe, not by the kernel, so only an event forwarded by udev has it.
    LoadRule("mtd", "mtd*ro", "MTD_FTL", "smartmedia", ("sm_ftl",)),
    # Debian's 80-debian-compat.rules, for old tape drivers (Debian bug 657948); matches every SCSI device.
    LoadRule("scsi", "", "MODALIAS", "scsi:t-*", ("sg",)),
)


def wanted(event: Uevent, origin: Origin) -> tuple[Request, ...]:
    """Return the requests that follow from `event`; none for any action but `add`.

    Since Linux 4.14 sends `bind` and `unbind`, loading on every action would reload a driver that was just removed
    (systemd pull request 6802).
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
    """Return the rank of a device in coldplug; devices with a lower rank are requested earlier.

    lanes: number of lanes for devices.
    Devices behind a USB host appear a second after its driver is loaded, so hosts come first. A processor requests a
    dozen modules in sequence, and would be last with all other lanes idle. Disk drivers probe asynchronously, and every
    load waits for that at its end (kernel do_init_module): in parallel they wait only once; and the boot waits for
    disks.
    """
    classes = [alias for alias in event.modaliases if alias.startswith("pci:")]
    if any(_USB_HOST in alias for alias in classes):
        return 0
    if lanes > 1 and event.subsystem == "cpu":
        return 1
    return 2 if any(_STORAGE in alias for alias in classes) else 3
