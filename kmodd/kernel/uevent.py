"""Parse the kernel's uevents, from netlink datagrams or sysfs `uevent` files, into `Uevent`.

A datagram is `ACTION@DEVPATH` NUL, followed by NUL-terminated `KEY=VALUE` strings (lib/kobject_uevent.c).
"""

from __future__ import annotations

from kmodd.dataclass import dataclass
from kmodd.errors import ParseError
from kmodd.text import decode

_MAX_DIGITS = 20
"""Digits of the highest SEQNUM, an unsigned number of 64 bits."""


@dataclass(frozen=True, slots=True)
class Uevent:
    """An event of a device, driver, module or other kobject."""

    action: str
    devpath: str
    """Path below /sys, beginning with `/`."""
    subsystem: str
    modaliases: tuple[str, ...]
    """All values of MODALIAS: older kernels sent two for some ACPI devices."""
    seqnum: int
    """The kernel's sequence number of the event; 0 if the text has none."""
    synthetic: bool = False
    """The event was triggered by a write to a `uevent` file, not by a device."""
    properties: tuple[tuple[str, str], ...] = ()
    """All keys and values in order; a key may repeat."""

    def get(self, key: str) -> str:
        """Return the first value of `key`, or an empty text if it is absent."""
        return next((value for name, value in self.properties if name == key), "")

    @property
    def sysname(self) -> str:
        """The kernel's name of the device: the last component of `devpath`."""
        return self.devpath.rpartition("/")[2]


def parse(datagram: bytes) -> Uevent:
    """Parse one datagram of the kernel's uevent group.

    Bytes that are not UTF-8 are kept as surrogate escapes.
    Raises ParseError for a datagram without NUL or `@/`, a string without a key, or an invalid SEQNUM.
    """
    head, nul, rest = datagram.partition(b"\0")
    action, at, devpath = head.partition(b"@")
    if not nul:
        raise ParseError(f"no NUL byte in {len(datagram)} bytes; expected ACTION@DEVPATH, NUL, KEY=VALUE strings")
    if not at or not devpath.startswith(b"/") or not action.isalpha():
        raise ParseError(f"header {head[:80]!r}; expected ACTION@/DEVPATH")
    if rest and not rest.endswith(b"\0"):
        raise ParseError("the last KEY=VALUE string is truncated; expected a NUL byte at its end")
    return from_properties(decode(action), decode(devpath), rest[:-1].split(b"\0") if rest else [])


def from_properties(action: str, devpath: str, pairs: list[bytes]) -> Uevent:
    """Return the event with the `KEY=VALUE` strings `pairs`: the rest of a datagram, or lines of a `uevent` file.

    Raises ParseError for a string without `=` or a SEQNUM that is not a number.
    """
    properties = []
    modaliases = []
    subsystem = ""
    seqnum = 0
    synthetic = False
    for pair in pairs:
        raw_key, equals, raw_value = pair.partition(b"=")
        if not equals or not raw_key:
            raise ParseError(f"string {pair[:80]!r}; expected KEY=VALUE")
        key = decode(raw_key)
        value = decode(raw_value)
        properties.append((key, value))
        match key:
            case "MODALIAS":
                if value:
                    modaliases.append(value)
            case "SUBSYSTEM":
                subsystem = value
            case "SEQNUM":
                if not raw_value.isdigit() or len(raw_value) > _MAX_DIGITS:
                    raise ParseError(f"SEQNUM {value[:80]!r}; expected a decimal number")
                seqnum = int(raw_value)
            case "SYNTH_UUID":
                synthetic = True
    return Uevent(action, devpath, subsystem, tuple(modaliases), seqnum, synthetic, tuple(properties))
