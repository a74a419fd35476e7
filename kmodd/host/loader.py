"""The loader: a process that carries out one step at a time and says what came of it.

It serves one connected SOCK_SEQPACKET socket; a datagram is one JSON object. It starts with
`{"pid": N}`; then each step is answered by
`{"errno": N, "stage": "…", "usec": N, "detail": "…"}`. It never plans
and never listens to the kernel. When its peer is gone it ends, but not inside a module's init:
signals are blocked there, because a killed init leaves hardware half set (kernel-proofs, section 3).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import time

from kmodd import modprobe_d
from kmodd.errors import Where
from kmodd.host.acts import (
    LOADER_MARK,
    Call,
    CommandCall,
    InsmodCall,
    Reply,
    RmmodCall,
    Stage,
    open_module,
    run_command,
)
from kmodd.host.kernel import Kernel

__all__ = ["MAX_STEP", "Call", "CommandCall", "InsmodCall", "Reply", "RmmodCall", "open_module", "serve"]

MAX_STEP = 65536
"""Bytes of one datagram, either way."""


def encode_call(call: Call) -> bytes:
    """One datagram for `call`; raises ValueError where it would not fit."""
    words: dict[str, str]
    match call:
        case InsmodCall(path, options):
            words = {"do": "insmod", "path": path, "options": options}
        case RmmodCall(module):
            words = {"do": "rmmod", "module": module}
        case CommandCall(module, at, real_file, options):
            words = {
                "do": "install", "module": module, "file": at.file, "line": str(at.line), "real": real_file,
                "options": options,
            }  # fmt: skip
    datagram = json.dumps(words).encode()
    if len(datagram) > MAX_STEP:
        raise ValueError(f"a step of {len(datagram)} bytes; at most {MAX_STEP}")
    return datagram


def decode_call(datagram: bytes) -> Call:
    """The call in one datagram; raises ValueError for anything else."""
    words = json.loads(datagram)
    if not isinstance(words, dict) or not all(isinstance(value, str) for value in words.values()):
        raise ValueError("expected one object of strings")
    try:
        match words["do"]:
            case "insmod":
                return InsmodCall(words["path"], words["options"])
            case "rmmod":
                return RmmodCall(words["module"])
            case "install":
                at = Where(words["file"], int(words["line"]))
                return CommandCall(words["module"], at, words["real"], words["options"])
            case unknown:
                raise ValueError(f"cannot do {unknown!r}")
    except KeyError as missing:
        raise ValueError(f"no {missing}") from None


def encode_reply(reply: Reply) -> bytes:
    """One datagram for `reply`."""
    return json.dumps(
        {"errno": reply.errno, "stage": reply.stage, "usec": reply.usec, "detail": reply.detail[:MAX_STEP // 8]}
    ).encode()


def decode_reply(datagram: bytes) -> Reply:
    """The loader's answer; raises ValueError for anything else."""
    words = json.loads(datagram)
    try:
        return Reply(int(words["errno"]), words["stage"], int(words["usec"]), str(words["detail"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a loader's answer: {error}") from None


def serve(connection: socket.socket, kernel: Kernel) -> None:
    """Carry out steps until the peer closes the connection."""
    _name_process()
    try:
        connection.send(json.dumps({"pid": os.getpid()}).encode())
        while datagram := connection.recv(MAX_STEP):
            before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                reply = _carry_out(decode_call(datagram), kernel)
            except ValueError as why:
                reply = Reply(errno.EPROTO, "file", 0, f"not a step: {why}")
            connection.send(encode_reply(reply))
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    except (BrokenPipeError, ConnectionResetError):
        pass  # The daemon is gone; whoever comes next reads the outcome from /proc/modules.


def _carry_out(call: Call, kernel: Kernel) -> Reply:
    begin = time.monotonic_ns()

    def reply(code: int, stage: Stage, detail: str = "") -> Reply:
        return Reply(code, stage, (time.monotonic_ns() - begin) // 1000, detail)

    match call:
        case InsmodCall(path, options):
            try:
                give = open_module(path)
            except OSError as error:
                return reply(error.errno or errno.EIO, "file", f"{path}: {error.strerror}")
            try:
                give(kernel, options)
            except OSError as error:
                return reply(error.errno or errno.EIO, "kernel")
            return reply(0, "kernel")
        case RmmodCall(module):
            try:
                kernel.delete_module(module, os.O_NONBLOCK)
            except OSError as error:
                return reply(error.errno or errno.EIO, "kernel")
            return reply(0, "kernel")
        case CommandCall():
            stage, why = _run_command_at(call)
            return reply(errno.EINVAL if why else 0, stage, why)


def _run_command_at(call: CommandCall) -> tuple[Stage, str]:
    """Run the command at a line; the answer is what failed and why, empty if nothing did."""
    try:
        with open(call.real_file, encoding="utf-8", errors="surrogateescape", newline="") as file:
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


def _name_process() -> None:
    """Be `kmodd-loader` in ps and in the kernel's trace of module loads."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:
        file.write("kmodd-loader")
