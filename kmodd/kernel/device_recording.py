"""Recordings of devices in umockdev's device format: parse and write them (umockdev, docs: device description format).

A device is a block of lines, `P:` its path first, and ends with an empty line. `E:` is a property of its uevent, `A:` a
sysfs attribute, `L:` a link, `H:` an attribute in hexadecimal digits, `N:` and `S:` names in /dev.
"""

from __future__ import annotations

import re

from kmodd.dataclass import dataclass
from kmodd.errors import Problem, Where
from kmodd.kernel.uevent import Uevent
from kmodd.text import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_PROBLEMS = 32
"""Invalid lines of a recording at most; the rest is then not read."""

_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_PATH_MAX = 4096
_KINDS = "P: N: S: E: A: H: L:"


@dataclass(frozen=True, slots=True)
class RecordedDevice:
    """A device of a recording."""

    devpath: str
    """Path below /sys."""
    properties: tuple[tuple[str, str], ...]
    """Of its uevent, in order."""
    attributes: tuple[tuple[str, str], ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    """Name → target, as `driver`."""

    @property
    def driver(self) -> str:
        """The name of its driver; empty: it has none."""
        link = next((target for name, target in self.links if name == "driver"), "")
        return link.rpartition("/")[2] or next((value for key, value in self.properties if key == "DRIVER"), "")

    @property
    def event(self) -> Uevent:
        """The `add` uevent that the kernel would send; aliases that only the attribute has are added."""
        aliases = [value for key, value in self.properties if key == "MODALIAS" and value]
        aliases += [line for name, text in self.attributes if name == "modalias" for line in text.split("\n") if line]
        aliases = list(dict.fromkeys(aliases))
        subsystem = next((value for key, value in self.properties if key == "SUBSYSTEM"), "")
        others = tuple(pair for pair in self.properties if pair[0] != "MODALIAS")
        properties = others + tuple(("MODALIAS", alias) for alias in aliases)
        return Uevent("add", self.devpath, subsystem, tuple(aliases), 0, synthetic=True, properties=properties)


def parse(text: str, file: str) -> tuple[tuple[RecordedDevice, ...], tuple[Problem, ...]]:
    """Return the devices of a recording, without the lines that are invalid, and a problem for each of these.

    file: its name in problems.
    """
    devices: list[RecordedDevice] = []
    problems: list[Problem] = []
    device: _Block | None = None
    is_skipping = False
    for number, line in enumerate(text.split("\n"), 1):
        kind, value = line[:2], line[3:]
        expected = ""
        if not line.strip():
            devices += [device.made()] if device else []
            device, is_skipping = None, False
        elif kind not in _KINDS.split() or line[2:3] != " ":
            expected = f"expected one of {_KINDS} and a blank"
        elif kind == "P:":
            devices += [device.made()] if device else []
            expected = _path_problem(value)
            device, is_skipping = (None if expected else _Block(value)), bool(expected)
        elif device is None:
            expected = "" if is_skipping else "expected a line P: /devices/… before the first of a device"
        elif kind not in ("N:", "S:"):
            expected = device.add(kind, value)
        if expected:
            problems.append(Problem(Where(file, number), 0, line[:200], expected))
            if len(problems) == MAX_PROBLEMS:
                rest = "expected a recording of umockdev's device format; the rest is not read"
                problems.append(Problem(Where(file, number), 0, "", rest))
                break
    devices += [device.made()] if device else []
    return tuple(devices), tuple(problems)


def text_of(devices: Sequence[RecordedDevice]) -> str:
    """Return a recording of devices."""
    blocks = []
    for device in devices:
        lines = [f"P: {device.devpath}"]
        lines += [f"E: {key}={value}" for key, value in device.properties if "\n" not in value]
        lines += [f"A: {name}={_escaped(value)}" for name, value in device.attributes]
        lines += [f"L: {name}={target}" for name, target in device.links]
        blocks.append("".join(f"{line}\n" for line in lines))
    return "\n".join(blocks)


class _Block:
    """The lines of one device."""

    def __init__(self, devpath: str) -> None:
        self._devpath = devpath
        self._pairs: dict[str, list[tuple[str, str]]] = {"E:": [], "A:": [], "L:": []}

    def add(self, kind: str, value: str) -> str:
        """Take a line; return what was expected, empty if it is valid."""
        name, equals, value = value.partition("=")
        if not equals or not name:
            return "expected NAME=VALUE"
        if kind != "H:":
            self._pairs[kind].append((name, _unescaped(value) if kind == "A:" else value))
        elif re.fullmatch(r"(?:[0-9A-Fa-f]{2})*", value) is None:
            return "expected hexadecimal digits, two for each byte"
        return ""

    def made(self) -> RecordedDevice:
        """Return the device."""
        return RecordedDevice(self._devpath, *(tuple(self._pairs[kind]) for kind in ("E:", "A:", "L:")))


def _path_problem(path: str) -> str:
    if not path.startswith("/devices/") or {"", ".", ".."} & set(path[1:].split("/")):
        return "expected the path of a device, /devices/…"
    is_sound = "\0" not in path and len(encode(path)) <= _PATH_MAX
    return "" if is_sound else f"expected a path of at most {_PATH_MAX} bytes, without NUL bytes"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")


def _unescaped(value: str) -> str:
    return _ESCAPE.sub(lambda found: "\n" if found[1] == "n" else found[1], value)
