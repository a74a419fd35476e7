"""What the daemon and a loader say to each other: words with a NUL between them, which no word can have.

One datagram is one call, or one answer.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass
from kmodd.errors import Where
from kmodd.loader.actions import Reply, Stage
from kmodd.text import decode, encode

MAX_STEP = 65536
"""Bytes of one datagram, either way."""

_STAGES: tuple[Stage, ...] = ("file", "kernel", "command", "signal", "none")
_MAX_NAME = 255
"""Characters of a name in /sys (NAME_MAX)."""


@dataclass(frozen=True, slots=True)
class InsmodRequest:
    """Give this file to the kernel."""

    path: str
    """As it is to be opened."""
    options: str


@dataclass(frozen=True, slots=True)
class InsmodRunRequest:
    """Give these files to the kernel, one after the other, until one is not taken. Each is answered by one Reply."""

    steps: tuple[InsmodRequest, ...]
    modules: tuple[str, ...]
    """Their names: what has come in by other ways meanwhile ends the run."""


@dataclass(frozen=True, slots=True)
class StopRequest:
    """End the run under way after the present file. There is no reply to this itself."""


@dataclass(frozen=True, slots=True)
class RmmodRequest:
    """Have the kernel remove this module, if nothing uses it."""

    module: str


@dataclass(frozen=True, slots=True)
class ShellRequest:
    """Run the install or remove command that stands at this place; the loader reads it there itself."""

    module: str
    at: Where
    real_file: str
    """`at.file` as it is to be opened."""
    options: str


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """Have the kernel look for a driver for this device again (Documentation/ABI/testing/sysfs-bus, drivers_probe)."""

    bus: str
    """A directory of /sys/bus."""
    device: str
    """A name in its `devices`."""


LoaderRequest = InsmodRunRequest | RmmodRequest | ShellRequest | ProbeRequest | StopRequest
"""What a loader can be told. Each is answered by one Reply, but a run by one for each file, and StopRequest by none."""


def encode_request(call: LoaderRequest) -> bytes:
    """One datagram for `call`; raises ValueError where it would not fit, and for a NUL in it."""
    words: list[str]
    match call:
        case InsmodRunRequest(steps, modules):
            words = ["insmod"]
            for step, module in zip(steps, modules, strict=True):
                words += (step.path, step.options, module)
        case RmmodRequest(module):
            words = ["rmmod", module]
        case ShellRequest(module, at, real_file, options):
            words = ["install", module, at.file, str(at.line), real_file, options]
        case ProbeRequest(bus, device):
            words = ["probe", bus, device]
        case StopRequest():
            words = ["stop"]
    datagram = encode("\0".join(words))
    if len(datagram) > MAX_STEP:
        raise ValueError(f"a step of {len(datagram)} bytes; at most {MAX_STEP}")
    if datagram.count(b"\0") >= len(words):
        raise ValueError("a step with a NUL in a word")
    return datagram


def decode_request(datagram: bytes) -> LoaderRequest:
    """The call in one datagram; raises ValueError for anything else."""
    words = decode(datagram).split("\0")
    match words:
        case ["insmod", _, *_] if len(words) % 3 == 1:
            return InsmodRunRequest(tuple(map(InsmodRequest, words[1::3], words[2::3])), tuple(words[3::3]))
        case ["rmmod", module]:
            return RmmodRequest(module)
        case ["install", module, file, line, real_file, options]:
            return ShellRequest(module, Where(file, int(line)), real_file, options)
        case ["probe", bus, device]:
            if not _is_name(bus) or " " in bus or not _is_name(device):
                raise ValueError(f"{device!r} on {bus!r} is no name of a device on a bus")
            return ProbeRequest(bus, device)
        case ["stop"]:
            return StopRequest()
    raise ValueError(f"{words[0]!r} with {len(words) - 1} words is nothing that a loader does")


def _is_name(name: str) -> bool:
    """It may be a directory of /sys/bus, or a device: "Fixed MDIO bus.0" is one, and so is "soc@0:ports,1"."""
    is_plain = name.isascii() and name.isprintable() and "/" not in name
    return is_plain and 0 < len(name) <= _MAX_NAME and name not in (".", "..")


def encode_reply(reply: Reply) -> bytes:
    """One datagram for `reply`."""
    words = f"{reply.errno}\0{reply.stage}\0{reply.usec}\0{reply.detail[: MAX_STEP // 8]}"
    return encode(words)


def decode_reply(datagram: bytes) -> Reply:
    """The loader's answer; raises ValueError for anything else."""
    code, stage, usec, detail = decode(datagram).split("\0", 3)
    for known in _STAGES:
        if stage == known:
            return Reply(int(code), known, int(usec), detail)
    raise ValueError(f"{stage!r} is no stage")
