"""Requests to load or remove modules."""

from __future__ import annotations

from kmodd.dataclass import dataclass
from kmodd.errors import Where

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from kmodd.kernel.requester import Requester

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
    files: tuple[tuple[str, int], ...] = ()
    """operator: module files that are not root's alone, which the caller has opened: path as printed, and descriptor of
    its offer (`loader/foreign_file.py`)."""
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
    ambiguous: bool = False
    """request: the process is unknown because several asked for the name at the same time."""
    candidates: tuple[Requester, ...] = ()
    """ambiguous: these processes, if all are known; it is allowed if it is for each of them."""
    again: bool = False
    """Whether this is a retry."""
    since: float = 0.0
    """When it came (monotonic, seconds); 0: unknown."""
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
