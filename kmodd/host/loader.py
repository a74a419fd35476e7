"""The loader: a process that carries out one step at a time and says what came of it.

It serves one connected SOCK_SEQPACKET socket; a datagram is words, with a NUL between them, which no word can have. It
starts with its process number; then each step is answered by `ERRNO STAGE USEC DETAIL`. Files come in runs, so that
nobody has to wake up between a module and the one that needs it: a run ends at the first that fails, and before the
next one when anything else comes from the peer, or when somebody else has brought the next one in or begun to; then
the stage is `none`.

It never plans and never listens to the kernel. What it is told names files; it takes only those of `Trusted`. When its
peer is gone it ends, but not inside a module's init: signals are blocked until all it was given is done, because a
killed init leaves hardware half set (kernel-proofs, section 3).

A boot waits for its start, so it imports little: the modules socket, json, re, signal and contextlib, and what they
import in turn, take as long as the interpreter itself.
"""

from __future__ import annotations

import errno
import os
import select
import time

from kmodd.errors import Where, assert_never
from kmodd.host.acts import (
    LOADER_MARK,
    Call,
    CommandCall,
    InsmodCall,
    ProbeCall,
    Reply,
    RmmodCall,
    RunCall,
    Stage,
    StopCall,
    open_module,
    run_command,
)
from kmodd.host.held_signals import Uninterrupted
from kmodd.host.kernel import Kernel
from kmodd.host.trusted import Trusted

__all__ = ["MAX_STEP", "Call", "CommandCall", "InsmodCall", "ProbeCall", "Reply", "RmmodCall", "RunCall", "serve"]

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


def serve(connection: int, kernel: Kernel, trusted: Trusted) -> None:
    """Carry out steps until the peer closes the connection, which is an open descriptor."""
    name_process("kmodd-loader")
    uninterrupted = Uninterrupted()
    try:
        os.write(connection, b"%d" % os.getpid())
        while datagram := os.read(connection, MAX_STEP):
            try:
                call = decode_call(datagram)
            except ValueError as why:
                os.write(connection, encode_reply(Reply(errno.EPROTO, "file", 0, f"not a step: {why}")))
                continue
            with uninterrupted:  # also between the files of a run: what was not begun would be taken for lost
                match call:
                    case StopCall():
                        pass  # the run was over by then
                    case RunCall(steps, modules):
                        _run(steps, modules, connection, kernel, trusted)
                    case _:
                        _answer(call, connection, kernel, trusted)
    except (BrokenPipeError, ConnectionResetError):
        pass  # The daemon is gone; whoever comes next reads the outcome from /proc/modules.


def _run(
    steps: tuple[InsmodCall, ...], modules: tuple[str, ...], connection: int, kernel: Kernel, trusted: Trusted
) -> None:
    """One file after the other, each answered, as long as all goes well."""
    peer = select.poll()
    peer.register(connection, select.POLLIN)
    for number, step in enumerate(steps):
        # Something has come, or the peer is gone; or the module is there.
        if number and (peer.poll(0) or os.access(f"{trusted.sys}/module/{modules[number]}/initstate", os.F_OK)):
            os.write(connection, encode_reply(Reply(errno.ECANCELED, "none", 0)))
            return
        if _answer(step, connection, kernel, trusted):
            return


_Step = InsmodCall | RmmodCall | CommandCall | ProbeCall


def _answer(call: _Step, connection: int, kernel: Kernel, trusted: Trusted) -> int:
    """Do one step and say what came of it. The answer: its errno."""
    reply = _carry_out(call, kernel, trusted)
    os.write(connection, encode_reply(reply))
    return reply.errno


def _carry_out(call: _Step, kernel: Kernel, trusted: Trusted) -> Reply:
    begin = time.monotonic_ns()
    stage: Stage = "kernel"
    code, detail, opening = 0, "", ""
    try:
        match call:
            case InsmodCall(path, options):
                stage, opening = "file", path
                give = open_module(path, opener=lambda path, _: trusted.open_module(path))
                stage, opening = "kernel", ""
                give(kernel, options)
            case RmmodCall(module):
                kernel.delete_module(module, os.O_NONBLOCK)
            case CommandCall():
                stage, opening = "command", "/bin/sh"
                stage, detail = _run_command_at(call, trusted)
                code = errno.EINVAL if detail else 0
            case ProbeCall(bus, device):
                with open(f"{trusted.sys}/bus/{bus}/drivers_probe", "wb", buffering=0) as file:
                    file.write(device.encode())
            case _:
                assert_never(call)
    except OSError as error:
        code = error.errno or errno.EIO
        detail = f"{opening}: {error.strerror}" if opening else ""
    return Reply(code, stage, (time.monotonic_ns() - begin) // 1000, detail)


def _run_command_at(call: CommandCall, trusted: Trusted) -> tuple[Stage, str]:
    """Run the command at a line; the answer is what failed and why, empty if nothing did."""
    from kmodd import modprobe_d

    try:
        with open(
            call.real_file, encoding="utf-8", errors="surrogateescape", newline="",
            opener=lambda path, _: trusted.open_config(path),
        ) as file:  # fmt: skip
            config = modprobe_d.parse_file(modprobe_d.ConfFile(call.at.file, file.read()))
    except OSError as error:
        return "command", f"{call.at.file}: {error.strerror}"
    kind, command = next(
        (
            (kind, line.command)
            for kind, lines in (("install", config.installs), ("remove", config.removes))
            for line in lines
            if line.at == call.at
        ),
        ("", ""),
    )
    if not command:
        return "command", f"{call.at}: no install command there any more"
    status = run_command(command, call.options, call.module, {**os.environ, LOADER_MARK: str(os.getpid())})
    if status < 0:
        import signal

        return "signal", f"{kind} command of {call.at} was killed by {signal.Signals(-status).name}"
    return "command", f"{kind} command of {call.at} exited with status {status}" if status else ""


def name_process(name: str) -> None:
    """Be called so in ps and in the kernel's trace of module loads; at most 15 bytes."""
    try:
        with open("/proc/self/comm", "wb", buffering=0) as file:
            file.write(name.encode())
    except OSError:
        pass  # where there is no /proc, nobody looks
