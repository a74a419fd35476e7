"""From a device's uevent to the requests that it makes, and the order of devices at coldplug."""

from __future__ import annotations

from kmodd.dataclass import dataclass
from kmodd.index import fnmatch
from kmodd.planning.request import Origin, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kmodd.kernel.uevent import Uevent


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
