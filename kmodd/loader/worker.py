"""The loader: a process that carries out one step at a time and says what came of it.

It serves one connected SOCK_SEQPACKET socket, in words that `loader_words` has. It starts with its process number; then
each step is answered. Files come in runs, so that nobody has to wake up between a module and the one that needs it: a
run ends at the first that fails, and before the next one when anything else comes from the peer, or when somebody else
has brought the next one in or begun to; then the stage is `none`.

It never plans and never listens to the kernel. What it is told names files; it takes only those of `Trusted`. When its
peer is gone it ends, but not inside a module's init: signals are blocked until all it was given is done, because a
killed init leaves hardware half set.

A boot waits for its start, so it imports little: the modules socket, json, re, signal and contextlib, and what they
import in turn, take as long as the interpreter itself.
"""

from __future__ import annotations

import errno
import os
import select
import time

from kmodd.errors import assert_never
from kmodd.host.signals import SignalsBlocked
from kmodd.loader.actions import LOADER_MARK, Reply, Stage, open_module, run_command
from kmodd.loader.protocol import (
    MAX_STEP,
    InsmodRequest,
    InsmodRunRequest,
    ProbeRequest,
    RmmodRequest,
    ShellRequest,
    StopRequest,
    decode_request,
    encode_reply,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kmodd.loader.syscalls import Kernel
    from kmodd.loader.trusted_paths import Trusted


def serve(connection: int, kernel: Kernel, trusted: Trusted) -> None:
    """Carry out steps until the peer closes the connection, which is an open descriptor."""
    name_process("kmodd-loader")
    uninterrupted = SignalsBlocked()
    try:
        os.write(connection, b"%d" % os.getpid())
        while datagram := os.read(connection, MAX_STEP):
            try:
                call = decode_request(datagram)
            except ValueError as why:
                os.write(connection, encode_reply(Reply(errno.EPROTO, "file", 0, f"not a step: {why}")))
                continue
            with uninterrupted:  # also between the files of a run: what was not begun would be taken for lost
                match call:
                    case StopRequest():
                        pass  # the run was over by then
                    case InsmodRunRequest(steps, modules):
                        _run(steps, modules, connection, kernel, trusted)
                    case _:
                        _answer(call, connection, kernel, trusted)
    except (BrokenPipeError, ConnectionResetError):
        pass  # The daemon is gone; whoever comes next reads the outcome from /proc/modules.


def _run(
    steps: tuple[InsmodRequest, ...], modules: tuple[str, ...], connection: int, kernel: Kernel, trusted: Trusted
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


_Step = InsmodRequest | RmmodRequest | ShellRequest | ProbeRequest


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
            case InsmodRequest(path, options):
                stage, opening = "file", path
                give = open_module(path, opener=lambda path, _: trusted.open_module(path))
                stage, opening = "kernel", ""
                give(kernel, options)
            case RmmodRequest(module):
                kernel.delete_module(module, os.O_NONBLOCK)
            case ShellRequest():
                stage, opening = "command", "/bin/sh"
                stage, detail = _run_command_at(call, trusted)
                code = errno.EINVAL if detail else 0
            case ProbeRequest(bus, device):
                with open(f"{trusted.sys}/bus/{bus}/drivers_probe", "wb", buffering=0) as file:
                    file.write(device.encode())
            case _:
                assert_never(call)
    except OSError as error:
        code = error.errno or errno.EIO
        detail = f"{opening}: {error.strerror}" if opening else ""
    return Reply(code, stage, (time.monotonic_ns() - begin) // 1000, detail)


def _run_command_at(call: ShellRequest, trusted: Trusted) -> tuple[Stage, str]:
    """Run the command at a line; the answer is what failed and why, empty if nothing did."""
    from kmodd.config import modprobe_d

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
