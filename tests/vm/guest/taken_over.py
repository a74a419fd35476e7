"""What a daemon that is taken over would try, in the daemon itself (`inside`), or as the control in a shell of root's.

`victim` is another process of root's; it prints its number and the address of one byte. `listen PATH…` makes sockets.
Each attack is undone or changes nothing; what it gives is the name of its errno, empty if it has succeeded.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import json
import os
import select
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

VICTIM = "/run/victim.json"
ANSWER = "/run/kmodd/attacks.json"
LATE = "/run/docker.sock"
PATHS = ("/run/systemd/private", "/run/dbus/system_bus_socket", LATE, "/run/podman/podman.sock", "/run/user/0/bus")
PTRACE_SEIZE, PTRACE_DETACH, MS_BIND = 0x4206, 17, 0x1000

libc = ctypes.CDLL(None, use_errno=True)


class Piece(ctypes.Structure):
    """A struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def call(function: Callable[..., int], *arguments: object) -> None:
    if function(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "")


def copy(function: Callable[..., int]) -> None:
    """Read or write the victim's byte."""
    with open(VICTIM) as file:
        pid, address = json.load(file)
    byte = ctypes.create_string_buffer(b"!", 1)
    ours, theirs = Piece(ctypes.addressof(byte), 1), Piece(address, 1)
    one, none = ctypes.c_ulong(1), ctypes.c_ulong(0)
    call(function, pid, ctypes.byref(ours), one, ctypes.byref(theirs), one, none)


def trace() -> None:
    call(libc.ptrace, PTRACE_SEIZE, pid_of_victim(), 0, 0)


def pid_of_victim() -> int:
    with open(VICTIM) as file:
        return int(json.load(file)[0])


def rewrite(path: str) -> None:
    """Write what is there."""
    with open(path, "rb", buffering=0) as file:
        now = file.read(4096)
    with open(path, "wb", buffering=0) as file:
        file.write(now or b"\n")


def make(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    os.unlink(path)


def make_link(path: str) -> None:
    os.symlink("/etc/hostname", path)
    os.unlink(path)


def connect(kind: int, path: str) -> None:
    with socket.socket(socket.AF_UNIX, kind) as new:
        new.connect(path)


def bind_mount() -> None:
    call(libc.mount, b"/etc", b"/mnt", None, MS_BIND, None)
    libc.umount2(b"/mnt", 2)


def new_trace_instance() -> None:
    os.mkdir("/sys/kernel/tracing/instances/attack")
    os.rmdir("/sys/kernel/tracing/instances/attack")


ATTACKS: dict[str, Callable[[], object]] = {
    "core_pattern": lambda: rewrite("/proc/sys/kernel/core_pattern"),
    "kernel.modprobe": lambda: rewrite("/proc/sys/kernel/modprobe"),
    "sysrq": lambda: os.close(os.open("/proc/sysrq-trigger", os.O_WRONLY)),
    "firmware path": lambda: rewrite("/sys/module/firmware_class/parameters/path"),
    "power state": lambda: os.close(os.open("/sys/power/disk", os.O_WRONLY)),
    "drivers_probe": lambda: os.close(os.open("/sys/bus/pci/drivers_probe", os.O_WRONLY)),
    "another cgroup": lambda: os.close(os.open("/sys/fs/cgroup/cgroup.procs", os.O_WRONLY)),
    "trace of the kernel": lambda: rewrite("/sys/kernel/tracing/tracing_on"),
    "process_vm_readv": lambda: copy(libc.process_vm_readv),
    "process_vm_writev": lambda: copy(libc.process_vm_writev),
    "ptrace": trace,
    "memory as a file": lambda: os.close(os.open(f"/proc/{pid_of_victim()}/mem", os.O_RDWR)),
    "root of a process": lambda: os.listdir(f"/proc/{pid_of_victim()}/root/"),
    "environment of a process": lambda: os.close(os.open(f"/proc/{pid_of_victim()}/environ", os.O_RDONLY)),
    "former kernel.modprobe": lambda: make("/run/kmodd.modprobe.x"),
    "link in the place of a mark": lambda: make_link("/run/kmodd.udev-rule.x"),
    "file in /etc": lambda: make("/etc/attack"),
    "file in /run": lambda: make("/run/attack"),
    "mount": bind_mount,
    "udevd's control socket": lambda: connect(socket.SOCK_SEQPACKET, "/run/udev/control"),
    **{f"new socket to {path}": functools.partial(connect, socket.SOCK_STREAM, path) for path in PATHS},
}

WORK: dict[str, Callable[[], object]] = {
    "uevent file": lambda: os.close(os.open("/sys/devices/system/cpu/cpu0/uevent", os.O_WRONLY)),
    "trace instance": new_trace_instance,
    "file in /run/kmodd": lambda: make("/run/kmodd/attack"),
}
"""What the daemon is for."""


def outcome(attack: Callable[[], object]) -> str:
    try:
        attack()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def inside() -> None:
    """Run kmodd's daemon, and all attacks once it has started; old sockets are from before it was confined."""
    sys.path.insert(0, "/usr/lib/kmodd")
    from kmodd.cli import run
    from kmodd.daemon import main

    spare = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in PATHS]
    go_round = vars(main)["go_round"]
    answers: dict[str, str] = {}

    def with_attacks(engine: Any, startup: Any, actions: Any, now: float) -> None:
        go_round(engine, startup, actions, now)
        if startup.phase == "running" and not answers:
            answers.update({name: outcome(attack) for name, attack in {**ATTACKS, **WORK}.items()})
            for old, path in zip(spare, PATHS, strict=True):
                answers[f"old socket to {path}"] = outcome(functools.partial(old.connect, path))
            with open(f"{ANSWER}.new", "w") as file:
                json.dump(answers, file)
            os.rename(f"{ANSWER}.new", ANSWER)

    vars(main)["go_round"] = with_attacks
    sys.exit(run.main([]))


def victim() -> None:
    byte = ctypes.create_string_buffer(1)
    with open(VICTIM, "w") as file:
        json.dump([os.getpid(), ctypes.addressof(byte)], file)
    time.sleep(3600)


def listen(paths: list[str]) -> None:
    """Listen where nothing does yet."""
    sockets = []
    for path in paths:
        if not os.path.exists(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            sockets.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            sockets[-1].bind(path)
            sockets[-1].listen()
    while select.select(sockets, [], []):
        for ready in select.select(sockets, [], [])[0]:
            ready.accept()[0].close()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["inside"]:
            inside()
        case ["outside"]:
            print(json.dumps({name: outcome(attack) for name, attack in {**ATTACKS, **WORK}.items()}))
        case ["victim"]:
            victim()
        case ["listen"]:
            listen(list(PATHS))
