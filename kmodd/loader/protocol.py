"""The protocol between the daemon and a loader or command runner: one datagram for each request and each reply.

A datagram is words separated by NUL, which no path, name or option can contain. A loader parses requests with
`decode_request`, which checks their form and the names in a ProbeRequest; a command runner parses its one request with
`decode_command`. Paths are checked when they are opened (`trusted_paths`). A module name, and module options, reach the
kernel as they are.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass
from kmodd.errors import Where
from kmodd.planning.reply import Reply, Stage
from kmodd.text import decode, encode

MAX_STEP = 65536
"""Bytes of one datagram, in either direction."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    CommandKind = Literal["install", "remove"]
else:
    CommandKind = str

_STAGES: tuple[Stage, ...] = ("file", "kernel", "command", "signal", "none")
_MAX_NAME = 255
"""Characters of a name in /sys (NAME_MAX)."""
_DIGITS = frozenset("0123456789abcdef")
_MAX_BUILD_ID = 64
"""Digits of a build ID; SHA-1 has 40."""


@dataclass(frozen=True, slots=True)
class InsmodRequest:
    """One module file to load; part of an InsmodRunRequest."""

    path: str
    """The path to open, with `--root`."""
    options: str
    """Module parameters, separated by spaces."""


@dataclass(frozen=True, slots=True)
class InsmodRunRequest:
    """Load these files in order, until the first that fails. Each file is answered by one Reply."""

    steps: tuple[InsmodRequest, ...]
    modules: tuple[str, ...]
    """Module name of each file. A module that is already in /sys/module ends the run before its file."""


@dataclass(frozen=True, slots=True)
class OfferedRequest:
    """A module file that an operator's process has opened."""

    path: str
    """For messages."""
    options: str
    offer: int = -1
    """Descriptor of its offer (`foreign_file`), which goes with the datagram; -1: none came."""


@dataclass(frozen=True, slots=True)
class StopRequest:
    """End the current run after the present file. Has no reply of its own."""


@dataclass(frozen=True, slots=True)
class RmmodRequest:
    """Remove this module, unless it is in use (delete_module(2) with O_NONBLOCK)."""

    module: str


@dataclass(frozen=True, slots=True)
class CommandRequest:
    """Run the command of a configuration line. The runner reads the command and its options from the files itself."""

    kind: CommandKind
    module: str
    at: Where
    """File and line of the command."""
    real_file: str
    """`at.file` with `--root`, to open."""
    alias: str = ""
    """The alias by which `options` lines may name the module, too; empty: none."""


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """Write this device to its bus's drivers_probe (Documentation/ABI/testing/sysfs-bus)."""

    bus: str
    """A directory of /sys/bus."""
    device: str
    """An entry of its `devices` directory."""


LoaderRequest = InsmodRunRequest | OfferedRequest | RmmodRequest | ProbeRequest | StopRequest
"""All requests to a loader. Each has one Reply; InsmodRunRequest has one for each file, StopRequest none."""


def encode_request(request: LoaderRequest | CommandRequest) -> bytes:
    """Return `request` as one datagram. Raises ValueError if it exceeds MAX_STEP, or if a word contains NUL."""
    words: list[str]
    match request:
        case InsmodRunRequest(steps, modules):
            words = ["insmod"]
            for step, module in zip(steps, modules, strict=True):
                words += (step.path, step.options, module)
        case OfferedRequest(path, options, _):
            words = ["offered", path, options]  # the offer is sent beside them
        case RmmodRequest(module):
            words = ["rmmod", module]
        case CommandRequest(kind, module, at, real_file, alias):
            words = [kind, module, at.file, str(at.line), real_file, alias]
        case ProbeRequest(bus, device):
            words = ["probe", bus, device]
        case StopRequest():
            words = ["stop"]
    datagram = encode("\0".join(words))
    if len(datagram) > MAX_STEP:
        raise ValueError(f"request of {len(datagram)} bytes exceeds the limit of {MAX_STEP}")
    if datagram.count(b"\0") >= len(words):
        raise ValueError("request contains NUL in a word")
    return datagram


def decode_request(datagram: bytes) -> LoaderRequest:
    """Parse a request from one datagram. Raises ValueError if it is none."""
    words = decode(datagram).split("\0")
    match words:
        case ["insmod", _, *_] if len(words) % 3 == 1:
            return InsmodRunRequest(tuple(map(InsmodRequest, words[1::3], words[2::3])), tuple(words[3::3]))
        case ["offered", path, options]:
            return OfferedRequest(path, options)
        case ["rmmod", module]:
            return RmmodRequest(module)
        case ["probe", bus, device]:
            if not _is_name(bus) or " " in bus or not _is_name(device):
                raise ValueError(f"{device!r} on bus {bus!r} is not a valid device name")
            return ProbeRequest(bus, device)
        case ["stop"]:
            return StopRequest()
    raise ValueError(f"unknown request {words[0]!r} with {len(words) - 1} words")


def decode_command(datagram: bytes) -> CommandRequest:
    """Parse a request to a command runner from one datagram. Raises ValueError if it is none."""
    match decode(datagram).split("\0"):
        case ["install" | "remove" as kind, module, file, line, real_file, alias]:
            return CommandRequest(kind, module, Where(file, int(line)), real_file, alias)
        case words:
            raise ValueError(f"unknown request {words[0]!r} with {len(words) - 1} words")


def _is_name(name: str) -> bool:
    """Return whether `name` is one valid path component in /sys/bus, such as "Fixed MDIO bus.0" or "soc@0:ports,1"."""
    is_plain = name.isascii() and name.isprintable() and "/" not in name
    return is_plain and 0 < len(name) <= _MAX_NAME and name not in (".", "..")


def encode_reply(reply: Reply) -> bytes:
    """Return `reply` as one datagram, its detail and its output cut to MAX_STEP / 8 characters.

    Words of later versions come last: after an upgrade the new daemon reads replies of loaders that were there before.
    """
    words = f"{reply.errno}\0{reply.stage}\0{reply.usec}\0{reply.detail[: MAX_STEP // 8]}"
    if reply.status or reply.build_id:
        words += f"\0{reply.status}\0{reply.output[: MAX_STEP // 8]}\0{reply.build_id}"
    return encode(words)


def decode_reply(datagram: bytes) -> Reply:
    """Parse a reply from one datagram. Raises ValueError if it is none."""
    code, stage, usec, detail, *more = decode(datagram).split("\0", 6)
    for known in _STAGES:
        if stage == known:
            if len(more) == 3 and not (_DIGITS.issuperset(more[2]) and len(more[2]) <= _MAX_BUILD_ID):
                more[2] = ""
            return Reply(int(code), known, int(usec), detail, *more)
    raise ValueError(f"unknown stage {stage!r}")
