"""The kernel's device events: datagrams and sysfs texts in, `Uevent` out.

Form: `ACTION@DEVPATH` NUL, then NUL-terminated `KEY=VALUE` strings (lib/kobject_uevent.c).
"""

from __future__ import annotations

from kmodd.dataclass import dataclass
from kmodd.errors import ParseError


@dataclass(frozen=True, slots=True)
class Uevent:
    """One event of one device, driver, module or other kobject."""

    action: str
    devpath: str
    """Below /sys, beginning with `/`."""
    subsystem: str
    modaliases: tuple[str, ...]
    """All values of MODALIAS: older kernels sent two for some ACPI devices."""
    seqnum: int
    """The kernel's counter over all events; 0 where the text had none."""
    synthetic: bool = False
    """Somebody wrote to a `uevent` file; no device came."""
    properties: tuple[tuple[str, str], ...] = ()
    """All keys in their order; a key may repeat."""

    def get(self, key: str) -> str:
        """The first value of `key`, empty where it is absent."""
        return next((value for name, value in self.properties if name == key), "")

    @property
    def sysname(self) -> str:
        """The kernel's name of it: the last part of its path."""
        return self.devpath.rpartition("/")[2]


def parse(datagram: bytes) -> Uevent:
    """Read one datagram of the kernel's uevent group.

    Bytes that are not UTF-8 are kept as surrogate escapes, so a value prints back as it came.
    Raises ParseError for what is not the form above: no NUL, no `@/`, no key, a bad SEQNUM.
    """
    head, nul, rest = datagram.partition(b"\0")
    action, at, devpath = head.partition(b"@")
    if not nul:
        raise ParseError(f"no NUL byte in {len(datagram)} bytes; expected ACTION@DEVPATH, NUL, KEY=VALUE strings")
    if not at or not devpath.startswith(b"/") or not action.isalpha():
        raise ParseError(f"header {head[:80]!r}; expected ACTION@/DEVPATH")
    if rest and not rest.endswith(b"\0"):
        raise ParseError("the last KEY=VALUE string is cut off; expected a NUL byte at its end")
    return from_properties(_decode(action), _decode(devpath), rest[:-1].split(b"\0") if rest else [])


def from_properties(action: str, devpath: str, pairs: list[bytes]) -> Uevent:
    """An event from its `KEY=VALUE` byte strings: the tail of a datagram, or the lines of a sysfs `uevent` file.

    Raises ParseError for a string without `=`, or a SEQNUM that is no number.
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
        key = _decode(raw_key)
        value = _decode(raw_value)
        properties.append((key, value))
        match key:
            case "MODALIAS":
                if value:
                    modaliases.append(value)
            case "SUBSYSTEM":
                subsystem = value
            case "SEQNUM":
                if not raw_value.isdigit():
                    raise ParseError(f"SEQNUM {value!r}; expected a decimal number")
                seqnum = int(raw_value)
            case "SYNTH_UUID":
                synthetic = True
    return Uevent(action, devpath, subsystem, tuple(modaliases), seqnum, synthetic, tuple(properties))


def _decode(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
