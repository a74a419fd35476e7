"""`kmodd request -q -- NAME`: the kernel's helper in Python, installed if helper/kmodd-request.c cannot be compiled.

Its behaviour and the reasons are described in that file.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import struct
import sys

from kmodd.kernel.proc_stat import FLAGS, PF_KTHREAD, split_stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SOCKET = "/run/kmodd/request"
FLAG = "/run/kmodd/closed"
MODPROBES = (
    "/usr/sbin/modprobe.kmod", "/usr/sbin/modprobe.kmod-sbin",
    "/sbin/modprobe", "/usr/sbin/modprobe", "/bin/modprobe", "/usr/bin/modprobe",
)  # fmt: skip
PROC = "/proc"
KERNEL_LOG = "/dev/kmsg"
ACCEPT_LIMIT = 2
"""Seconds to wait for connect(2), and again for the daemon's `a` (accepted)."""

_MARK = "KMODD_REQUEST", "gave-up"
_MAX_SHOWN = 255


def main(argv: list[str]) -> int:
    """Return the daemon's answer, 0 or 1; without an answer, execute the real modprobe, or refuse and return 1.

    A call by a process, not by the kernel, executes the real modprobe with the arguments and environment of the call.
    """
    if not _is_kernels():
        _become_modprobe(argv, os.environb)
        if sys.stderr:
            print("modprobe: FATAL: Failed to execute kmod's modprobe, it is missing: reinstall kmod", file=sys.stderr)
        return 1
    if os.environ.get(_MARK[0]) == _MARK[1]:
        return 1
    match argv:
        case ["-q", "--", name] if name:
            answer = _ask(os.fsencode(name))
            return _fall_back(argv, "the daemon does not answer") if answer is None else answer
        case _:
            return _fall_back(argv, "this is no call of the kernel's")


def _ask(name: bytes) -> int | None:
    """Return the daemon's answer, 0 or 1, or None if there is none."""
    limit, none = struct.pack("ll", ACCEPT_LIMIT, 0), struct.pack("ll", 0, 0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as daemon:
        # Not settimeout(): its non-blocking connect(2) fails at once if the daemon's backlog is full.
        daemon.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        daemon.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        try:
            daemon.connect(SOCKET)
            daemon.send(name)
            if daemon.recv(2) != b"a":
                return None
            daemon.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, none)
            return {b"0": 0, b"1": 1}.get(daemon.recv(2))
        except OSError:
            return None


def _is_closed() -> bool:
    """Return whether the policy is enforced. Errors other than ENOENT count as enforced: a user may provoke them."""
    try:
        flag = os.lstat(FLAG)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return stat.S_ISREG(flag.st_mode) and flag.st_uid == 0


def _is_kernels() -> bool:
    """Return whether the parent is a kernel thread, by its flags (proc_pid_stat(5)).

    A process whose first thread has ended has no program in /proc either.
    """
    parent = os.getppid()
    try:
        with open(f"{PROC}/{parent}/stat", "rb") as file:
            _, fields = split_stat(file.read())
        return parent > 0 and bool(int(fields[FLAGS]) & PF_KTHREAD)
    except (OSError, ValueError, IndexError):
        return False


def _fall_back(argv: list[str], why: str) -> int:
    if _is_closed():
        _log_refusal(argv[-1] if argv else "", why)
    else:
        own = [("HOME", "/"), ("TERM", "linux"), ("PATH", "/sbin:/usr/sbin:/bin:/usr/bin"), _MARK]
        _become_modprobe(argv, {name.encode(): value.encode() for name, value in own})
    return 1


def _become_modprobe(argv: list[str], environment: Mapping[bytes, bytes]) -> None:
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these, and execve(2) preserves that
        signal.signal(ignored, signal.SIG_DFL)
    for modprobe in MODPROBES:
        try:
            os.execve(modprobe, ["modprobe", *argv], environment)
        except OSError:
            continue


def _log_refusal(name: str, why: str) -> None:
    shown = "".join(chr(byte) if 0x20 <= byte <= 0x7E else "?" for byte in os.fsencode(name)[:_MAX_SHOWN])
    line = f"<4>kmodd-request: {shown} refused: {why} and the policy is enforced\n"
    try:
        file = os.open(KERNEL_LOG, os.O_WRONLY)
        os.write(file, line.encode())
    except OSError:
        pass
