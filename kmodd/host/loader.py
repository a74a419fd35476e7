"""The loader: a process that carries out one step at a time and says what came of it.

It serves one connected SOCK_SEQPACKET socket; a datagram is one JSON object. It starts with `{"pid": N}`; then each
step is answered by `{"errno": N, "stage": "…", "usec": N, "detail": "…"}`. Files come in runs, so that nobody has to
wake up between a module and the one that needs it: a run ends at the first that fails, and before the next one when
anything else comes from the peer, or when somebody else has brought the next one in or begun to; then `stage` is
`none`.

It never plans and never listens to the kernel. What it is told names files; it takes only those of `Trusted`. When its
peer is gone it ends, but not inside a module's init: signals are blocked until all it was given is done, because a
killed init leaves hardware half set (kernel-proofs, section 3).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import socket
import time

from kmodd import modprobe_d
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
from kmodd.host.held_signals import uninterrupted
from kmodd.host.kernel import Kernel
from kmodd.host.trusted import Trusted

__all__ = ["MAX_STEP", "Call", "CommandCall", "InsmodCall", "ProbeCall", "Reply", "RmmodCall", "RunCall", "serve"]

MAX_STEP = 65536
"""Bytes of one datagram, either way."""

_BUS = re.compile(r"(?!\.\.?$)[A-Za-z0-9._:+-]{1,255}", re.ASCII)
"""A directory of /sys/bus."""
_DEVICE = re.compile(r"(?!\.\.?$)[ !-.0-~]{1,255}", re.ASCII)
"""A device's name: printable, without a slash. "Fixed MDIO bus.0" is one, and so is "soc@0:ports,1"."""


def encode_call(call: Call) -> bytes:
    """One datagram for `call`; raises ValueError where it would not fit."""
    words: dict[str, str | list[str]]
    match call:
        case RunCall(steps, modules):
            words = {
                "do": "insmod", "paths": [step.path for step in steps], "options": [step.options for step in steps],
                "modules": list(modules),
            }  # fmt: skip
        case RmmodCall(module):
            words = {"do": "rmmod", "module": module}
        case CommandCall(module, at, real_file, options):
            words = {
                "do": "install", "module": module, "file": at.file, "line": str(at.line), "real": real_file,
                "options": options,
            }  # fmt: skip
        case ProbeCall(bus, device):
            words = {"do": "probe", "bus": bus, "device": device}
        case StopCall():
            words = {"do": "stop"}
    datagram = json.dumps(words).encode()
    if len(datagram) > MAX_STEP:
        raise ValueError(f"a step of {len(datagram)} bytes; at most {MAX_STEP}")
    return datagram


def decode_call(datagram: bytes) -> Call:
    """The call in one datagram; raises ValueError for anything else."""
    words = json.loads(datagram)
    if not isinstance(words, dict):
        raise ValueError("expected one object")
    try:
        if words["do"] == "insmod":
            return _decode_run(words["paths"], words["options"], words["modules"])
        if not all(isinstance(value, str) for value in words.values()):
            raise ValueError("expected one object of strings")
        match words["do"]:
            case "rmmod":
                return RmmodCall(words["module"])
            case "install":
                at = Where(words["file"], int(words["line"]))
                return CommandCall(words["module"], at, words["real"], words["options"])
            case "stop":
                return StopCall()
            case "probe":
                if not _BUS.fullmatch(words["bus"]) or not _DEVICE.fullmatch(words["device"]):
                    raise ValueError(f"{words['device']!r} on {words['bus']!r} is no name of a device on a bus")
                return ProbeCall(words["bus"], words["device"])
            case unknown:
                raise ValueError(f"cannot do {unknown!r}")
    except KeyError as missing:
        raise ValueError(f"no {missing}") from None


def _decode_run(paths: object, options: object, modules: object) -> RunCall:
    columns = []
    for column in (paths, options, modules):
        if not isinstance(column, list) or not all(isinstance(word, str) for word in column):
            raise ValueError("expected lists of strings")
        columns.append(column)
    steps = tuple(InsmodCall(path, text) for path, text in zip(columns[0], columns[1], strict=True))
    if not steps or len(steps) != len(columns[2]):
        raise ValueError(f"a run of {len(steps)} files and {len(columns[2])} names")
    return RunCall(steps, tuple(columns[2]))


def encode_reply(reply: Reply) -> bytes:
    """One datagram for `reply`."""
    return json.dumps(
        {"errno": reply.errno, "stage": reply.stage, "usec": reply.usec, "detail": reply.detail[: MAX_STEP // 8]}
    ).encode()


def decode_reply(datagram: bytes) -> Reply:
    """The loader's answer; raises ValueError for anything else."""
    words = json.loads(datagram)
    try:
        return Reply(int(words["errno"]), words["stage"], int(words["usec"]), str(words["detail"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a loader's answer: {error}") from None


def serve(connection: socket.socket, kernel: Kernel, trusted: Trusted) -> None:
    """Carry out steps until the peer closes the connection."""
    name_process("kmodd-loader")
    try:
        connection.send(json.dumps({"pid": os.getpid()}).encode())
        while datagram := connection.recv(MAX_STEP):
            try:
                call = decode_call(datagram)
            except ValueError as why:
                connection.send(encode_reply(Reply(errno.EPROTO, "file", 0, f"not a step: {why}")))
                continue
            with uninterrupted():  # also between the files of a run: what was not begun would be taken for lost
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
    steps: tuple[InsmodCall, ...],
    modules: tuple[str, ...],
    connection: socket.socket,
    kernel: Kernel,
    trusted: Trusted,
) -> None:
    """One file after the other, each answered, as long as all goes well."""
    for number, step in enumerate(steps):
        if number and (_has_more(connection) or os.path.exists(f"{trusted.sys}/module/{modules[number]}/initstate")):
            connection.send(encode_reply(Reply(errno.ECANCELED, "none", 0)))
            return
        if _answer(step, connection, kernel, trusted):
            return


def _has_more(connection: socket.socket) -> bool:
    """Something has come, or the peer is gone."""
    try:
        connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    return True


_Step = InsmodCall | RmmodCall | CommandCall | ProbeCall


def _answer(call: _Step, connection: socket.socket, kernel: Kernel, trusted: Trusted) -> int:
    """Do one step and say what came of it. The answer: its errno."""
    reply = _carry_out(call, kernel, trusted)
    connection.send(encode_reply(reply))
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
        return "signal", f"{kind} command of {call.at} was killed by {signal.Signals(-status).name}"
    return "command", f"{kind} command of {call.at} exited with status {status}" if status else ""


def name_process(name: str) -> None:
    """Be called so in ps and in the kernel's trace of module loads; at most 15 bytes."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:
        file.write(name)
