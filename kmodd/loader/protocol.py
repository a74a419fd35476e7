"""What the daemon and a loader say to each other: words with a NUL between them, which no word can have.

One datagram is one call, or one answer.
"""

from __future__ import annotations

from kmodd.errors import Where
from kmodd.loader.actions import (
    Call,
    CommandCall,
    InsmodCall,
    ProbeCall,
    Reply,
    RmmodCall,
    RunCall,
    Stage,
    StopCall,
)

MAX_STEP = 65536
"""Bytes of one datagram, either way."""

_STAGES: tuple[Stage, ...] = ("file", "kernel", "command", "signal", "none")
_MAX_NAME = 255
"""Characters of a name in /sys (NAME_MAX)."""


def encode_call(call: Call) -> bytes:
    """One datagram for `call`; raises ValueError where it would not fit, and for a NUL in it."""
    words: list[str]
    match call:
        case RunCall(steps, modules):
            words = ["insmod"]
            for step, module in zip(steps, modules, strict=True):
                words += (step.path, step.options, module)
        case RmmodCall(module):
            words = ["rmmod", module]
        case CommandCall(module, at, real_file, options):
            words = ["install", module, at.file, str(at.line), real_file, options]
        case ProbeCall(bus, device):
            words = ["probe", bus, device]
        case StopCall():
            words = ["stop"]
    datagram = "\0".join(words).encode("utf-8", "surrogateescape")
    if len(datagram) > MAX_STEP:
        raise ValueError(f"a step of {len(datagram)} bytes; at most {MAX_STEP}")
    if datagram.count(b"\0") >= len(words):
        raise ValueError("a step with a NUL in a word")
    return datagram


def decode_call(datagram: bytes) -> Call:
    """The call in one datagram; raises ValueError for anything else."""
    words = datagram.decode("utf-8", "surrogateescape").split("\0")
    match words:
        case ["insmod", _, *_] if len(words) % 3 == 1:
            return RunCall(tuple(map(InsmodCall, words[1::3], words[2::3])), tuple(words[3::3]))
        case ["rmmod", module]:
            return RmmodCall(module)
        case ["install", module, file, line, real_file, options]:
            return CommandCall(module, Where(file, int(line)), real_file, options)
        case ["probe", bus, device]:
            if not _is_name(bus) or " " in bus or not _is_name(device):
                raise ValueError(f"{device!r} on {bus!r} is no name of a device on a bus")
            return ProbeCall(bus, device)
        case ["stop"]:
            return StopCall()
    raise ValueError(f"{words[0]!r} with {len(words) - 1} words is nothing that a loader does")


def _is_name(name: str) -> bool:
    """It may be a directory of /sys/bus, or a device: "Fixed MDIO bus.0" is one, and so is "soc@0:ports,1"."""
    is_plain = name.isascii() and name.isprintable() and "/" not in name
    return is_plain and 0 < len(name) <= _MAX_NAME and name not in (".", "..")


def encode_reply(reply: Reply) -> bytes:
    """One datagram for `reply`."""
    words = f"{reply.errno}\0{reply.stage}\0{reply.usec}\0{reply.detail[: MAX_STEP // 8]}"
    return words.encode("utf-8", "surrogateescape")


def decode_reply(datagram: bytes) -> Reply:
    """The loader's answer; raises ValueError for anything else."""
    code, stage, usec, detail = datagram.decode("utf-8", "surrogateescape").split("\0", 3)
    for known in _STAGES:
        if stage == known:
            return Reply(int(code), known, int(usec), detail)
    raise ValueError(f"{stage!r} is no stage")
