"""The loader: a process with CAP_SYS_MODULE that carries out one request at a time and replies.

It serves one connected SOCK_SEQPACKET socket (`protocol`). It first sends its pid, then a reply for each request.
Module files come in runs, so that the daemon need not wake up between two modules. A run ends at the first file that
fails; it also ends, with stage `none`, before a file if another request has arrived, the daemon has closed the
connection, or the module is loaded or being loaded already.

The daemon is not trusted. Module files are accepted from the files of `Trusted` only, and those that an operator's
process has opened and passed through the daemon (`foreign_file`); the device of a probe is checked in `protocol`.
Module options and names of modules to remove are not checked; a removal is never forced. The loader does not plan, runs
no commands, and reads neither uevents nor the kernel log.

It ends when its connection closes, but not during a request: all signals are blocked until the request is done, as an
init that is killed leaves hardware half set up.

Boot waits for this process to start, so it imports little: socket, json, re, signal and contextlib, with their own
imports, take as long as the interpreter.
"""

from __future__ import annotations

import _socket  # not socket: see spawner_process
import errno
import os
import select
import sys
import time

from kmodd.errors import assert_never
from kmodd.host.build_id import read_build_id
from kmodd.host.signals import SignalsBlocked
from kmodd.loader.actions import open_module
from kmodd.loader.protocol import (
    MAX_STEP,
    InsmodRequest,
    InsmodRunRequest,
    OfferedRequest,
    ProbeRequest,
    RmmodRequest,
    StopRequest,
    decode_request,
    encode_reply,
)
from kmodd.planning.reply import Reply, Stage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kmodd.loader.syscalls import Kernel
    from kmodd.loader.trusted_paths import Trusted


_FD_BYTES = 4
"""Bytes of a descriptor in a control message (SCM_RIGHTS in unix(7))."""


def serve(connection: int, kernel: Kernel, trusted: Trusted) -> None:
    """Carry out the requests of a connection, an open descriptor, until the peer closes it."""
    name_process("kmodd-loader")
    signals_blocked = SignalsBlocked()
    peer = _socket.socket(fileno=connection)
    try:
        os.write(connection, b"%d" % os.getpid())
        while True:
            datagram, offer = _receive(peer)
            if not datagram:
                return
            with signals_blocked:  # also between the files of a run, or the daemon would take the rest for lost
                _serve(datagram, offer, connection, kernel, trusted)
            if offer >= 0:
                os.close(offer)
    except (BrokenPipeError, ConnectionResetError):
        pass  # The daemon is gone; the next one reads the outcome from /proc/modules.
    finally:
        peer.detach()


def _serve(datagram: bytes, offer: int, connection: int, kernel: Kernel, trusted: Trusted) -> None:
    """Carry out one request. `offer`: the descriptor that came with it, -1 without one."""
    try:
        request = decode_request(datagram)
    except ValueError as why:
        os.write(connection, encode_reply(Reply(errno.EPROTO, "file", 0, f"invalid request: {why}")))
        return
    match request:
        case StopRequest():
            pass  # the run has already ended
        case InsmodRunRequest(steps, modules):
            _run(steps, modules, connection, kernel, trusted)
        case OfferedRequest(path, options):
            _serve_step(OfferedRequest(path, options, offer), connection, kernel, trusted)
        case _:
            _serve_step(request, connection, kernel, trusted)


def _receive(peer: _socket.socket) -> tuple[bytes, int]:
    """Return the next datagram, empty at the end, and the descriptor that came with it, -1 without one."""
    datagram, control, _, _ = peer.recvmsg(MAX_STEP, _socket.CMSG_LEN(_FD_BYTES), _socket.MSG_CMSG_CLOEXEC)
    return datagram, next((int.from_bytes(data[:_FD_BYTES], sys.byteorder) for *_, data in control), -1)


def _run(
    steps: tuple[InsmodRequest, ...], modules: tuple[str, ...], connection: int, kernel: Kernel, trusted: Trusted
) -> None:
    """Load files in order and reply to each, until one fails or the run is to end."""
    peer = select.poll()
    peer.register(connection, select.POLLIN)
    for number, step in enumerate(steps):
        # A request has arrived or the peer is gone; or the module is loaded or being loaded.
        if number and (peer.poll(0) or os.access(f"{trusted.sys}/module/{modules[number]}/initstate", os.F_OK)):
            os.write(connection, encode_reply(Reply(errno.ECANCELED, "none", 0)))
            return
        if _serve_step(step, connection, kernel, trusted, modules[number]):
            return


_Step = InsmodRequest | OfferedRequest | RmmodRequest | ProbeRequest


def _serve_step(request: _Step, connection: int, kernel: Kernel, trusted: Trusted, module: str = "") -> int:
    """Carry out one step, send its reply, and return its errno; 0 on success. module: to be loaded; empty: none."""
    reply = _carry_out(request, kernel, trusted, module)
    os.write(connection, encode_reply(reply))
    return reply.errno


def _carry_out(request: _Step, kernel: Kernel, trusted: Trusted, module: str) -> Reply:
    begin = time.monotonic_ns()
    stage: Stage = "kernel"
    code, detail, opening = 0, "", ""
    try:
        match request:
            case InsmodRequest(path, options):
                stage, opening = "file", path
                give = open_module(path, opener=lambda path, _: trusted.open_module(path))
                stage, opening = "kernel", ""
                give(kernel, options)
            case OfferedRequest(path, options, offer):
                from kmodd.loader.foreign_file import take  # only here: hardly any loader needs it

                stage, opening = "file", path
                give = open_module(path, opener=lambda _path, _flags: take(offer))
                stage, opening = "kernel", ""
                give(kernel, options)
            case RmmodRequest(name):
                kernel.delete_module(name, os.O_NONBLOCK)
            case ProbeRequest(bus, device):
                with open(f"{trusted.sys}/bus/{bus}/drivers_probe", "wb", buffering=0) as file:
                    file.write(device.encode())
            case _:
                assert_never(request)
    except OSError as error:
        code = error.errno or errno.EIO
        detail = f"{opening}: {error.strerror}" if opening else ""
    except MemoryError:
        code, detail = errno.ENOMEM, f"{opening}: not enough memory to read the module" if opening else ""
    usec = (time.monotonic_ns() - begin) // 1000
    return Reply(code, stage, usec, detail, build_id=read_build_id(module, trusted.sys) if module and not code else "")


def name_process(name: str) -> None:
    """Set the name of this process, at most 15 bytes, for ps(1) and the kernel's trace of module loads."""
    try:
        with open("/proc/self/comm", "wb", buffering=0) as file:
            file.write(name.encode())
    except OSError:
        pass  # without /proc there is no ps(1) to read it
