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
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from kmodd import modprobe_d
from kmodd.errors import Where
from kmodd.host.kernel import COMPRESSED_FILE, Kernel

MAX_STEP = 65536
"""Bytes of one datagram, either way."""

_MAGIC = ((b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ\x00", "xz"), (b"\x1f\x8b", "gzip"))
"""First bytes of a compressed module; kmod goes by them too, never by the suffix (libkmod-file.c)."""


@dataclass(frozen=True, slots=True)
class InsmodCall:
    """Give this file to the kernel."""

    path: str
    """As it is to be opened."""
    options: str


@dataclass(frozen=True, slots=True)
class RmmodCall:
    """Have the kernel remove this module, if nothing uses it."""

    module: str


@dataclass(frozen=True, slots=True)
class CommandCall:
    """Run the install or remove command that stands at this place; the loader reads it there itself."""

    module: str
    at: Where
    real_file: str
    """`at.file` as it is to be opened."""
    options: str


Call = InsmodCall | RmmodCall | CommandCall


LOADER_MARK = "KMODD_LOADER"
"""Set for the commands that a loader runs: a modprobe among them must not wait for the lane that waits for it."""

Stage = Literal["file", "kernel", "command"]
"""Who gave the errno: opening or unpacking the file, the kernel, or an install or remove command.

ENOENT of the kernel means an unknown symbol, ENOENT of open a missing file: they must stay apart.
"""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one call."""

    errno: int
    """0: done."""
    stage: Stage
    usec: int
    detail: str = ""


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
            why = _run_command_at(call)
            return reply(errno.EINVAL if why else 0, "command", why)


def open_module(path: str, flags: int = 0) -> Callable[[Kernel, str], None]:
    """Open the module file `path`; the answer hands it to a kernel with options, once.

    `flags`: IGNORE_MODVERSIONS, IGNORE_VERMAGIC; they reach the kernel by finit_module alone.

    A compressed file goes to the kernel as it is where `/sys/module/compression` names its format, else it is
    unpacked here for init_module; so it is too where the kernel has no finit_module (kmod, libkmod-module.c).
    Raises OSError with the errno of opening, or EINVAL, ENOSYS for what cannot be unpacked.
    """
    with open(path, "rb") as file:
        head = file.read(6)
        format_name = next((name for magic, name in _MAGIC if head.startswith(magic)), "")
        if format_name and format_name != _kernel_unpacks():
            file.seek(0)
            image = unpack(file.read(), format_name)
            return lambda kernel, options: kernel.init_module(image, options)
        fd = os.dup(file.fileno())

    def give(kernel: Kernel, options: str) -> None:
        try:
            kernel.finit_module(fd, options, flags | (COMPRESSED_FILE if format_name else 0))
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            with open(path, "rb") as again:
                data = again.read()
            kernel.init_module(unpack(data, format_name) if format_name else data, options)
        finally:
            os.close(fd)

    return give


def unpack(data: bytes, format_name: str) -> bytes:
    """The module in a compressed file's bytes; raises OSError EINVAL where it is damaged, ENOSYS without a library."""
    try:
        match format_name:
            case "gzip":
                return zlib.decompress(data, wbits=31)
            case "xz":
                import lzma  # 10 ms that a loader of plain modules need not pay

                return lzma.decompress(data)
            case _:
                import zstandard

                image: bytes = zstandard.ZstdDecompressor().decompressobj().decompress(data)
                return image
    except ImportError:
        raise OSError(errno.ENOSYS, "compressed with zstd; install python3-zstandard to unpack it") from None
    except Exception as error:  # each library has an exception of its own for damaged data
        raise OSError(errno.EINVAL, f"damaged {format_name} data: {error}") from None


def _kernel_unpacks() -> str:
    try:
        with open("/sys/module/compression") as file:
            return file.read().strip()
    except OSError:
        return ""


def _run_command_at(call: CommandCall) -> str:
    """Run the command at a line; the answer is why it failed, empty if it did not."""
    try:
        with open(call.real_file, encoding="utf-8", errors="surrogateescape", newline="") as file:
            config = modprobe_d.parse_file(modprobe_d.ConfFile(call.at.file, file.read()))
    except OSError as error:
        return f"{call.at.file}: {error.strerror}"
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
        return f"{call.at}: no install command there any more"
    status = run_command(command, call.options, call.module, {**os.environ, LOADER_MARK: str(os.getpid())})
    if status < 0:
        return f"{kind} command of {call.at} was killed by {signal.Signals(-status).name}"
    return f"{kind} command of {call.at} exited with status {status}" if status else ""


def run_command(command: str, options: str, module: str, env: Mapping[str, str]) -> int:
    """Run it with /bin/sh, as system(3) in kmod does; the answer is its status, negative for a signal."""
    # All signals are blocked here; the command must not inherit that.
    child = os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", command.replace("$CMDLINE_OPTS", options)],
        {**env, "MODPROBE_MODULE": module},
        setsigmask=[],
    )
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _name_process() -> None:
    """Be `kmodd-loader` in ps and in the kernel's trace of module loads."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:
        file.write("kmodd-loader")
