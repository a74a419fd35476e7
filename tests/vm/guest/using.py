"""Runs in the guest: uses what the kernel has to ask a module for, and tells what the caller saw.

Usage: using.py USE...  A use is `socket FAMILY TYPE PROTOCOL`, `mount FILESYSTEM`, `link KIND`, `qdisc KIND`,
`filter KIND`, `chain TYPE`, `alg TYPE NAME`, `exec FILE`, `open FILE` or `ldisc NUMBER`, one argument each.
Writes one JSON object: {"pid": ours as /proc has it, "uses": {use: [errno or 0, seconds]}}.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)
TIOCSETD = 0x5423
REQUEST, ACK, CREATE, EXCL = 0x1, 0x4, 0x400, 0x200  # flags of <linux/netlink.h>
LO = 1  # the number of the interface lo


def attribute(kind: int, data: bytes) -> bytes:
    """struct nlattr."""
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def message(kind: int, flags: int, body: bytes) -> bytes:
    """struct nlmsghdr."""
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body


def talk(protocol: int, *messages: bytes) -> None:
    """Send them as one; raises the first error that the kernel answers with."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as kernel:
        kernel.settimeout(60)
        kernel.send(b"".join(messages))
        answer = kernel.recv(65536)
    length, kind = struct.unpack_from("=IH", answer)
    code = -struct.unpack_from("=i", answer, 16)[0]
    if kind == 2 and length >= 20 and code:
        raise OSError(code, os.strerror(code))


def name(text: str) -> bytes:
    return text.encode() + b"\0"


def link(kind: str) -> None:
    """ip link add type KIND"""
    info = attribute(18, attribute(1, name(kind)))  # IFLA_LINKINFO, IFLA_INFO_KIND
    body = bytes(16) + attribute(3, name(f"kt-{kind}")) + info  # struct ifinfomsg, IFLA_IFNAME
    talk(0, message(16, REQUEST | ACK | CREATE | EXCL, body))


def traffic(kind: int, handle: int, parent: int, info: int, discipline: str) -> None:
    body = struct.pack("=BxxxiIII", 0, LO, handle, parent, info) + attribute(1, name(discipline))  # struct tcmsg
    talk(0, message(kind, REQUEST | ACK | CREATE, body))


def qdisc(kind: str) -> None:
    """tc qdisc add dev lo root handle 1: KIND"""
    traffic(36, 0x10000, 0xFFFFFFFF, 0, kind)


def filter_(kind: str) -> None:
    """tc filter add dev lo parent 1: prio 1 protocol all KIND"""
    traffic(44, 0, 0x10000, 1 << 16 | 0x0300, kind)


def chain(kind: str) -> None:
    """nft add table ip kt, nft add chain ip kt kt { type KIND hook postrouting priority 100; }"""
    batch = struct.pack(">BBH", 0, 0, 10)  # struct nfgenmsg: the subsystem is nf_tables
    family = struct.pack(">BBH", 2, 0, 0)
    hook = attribute(4 | 0x8000, attribute(1, struct.pack(">I", 4)) + attribute(2, struct.pack(">I", 100)))
    table = attribute(1, name("kt"))
    talk(
        12,
        message(0x10, REQUEST, batch),
        message(10 << 8, REQUEST | CREATE, family + table),
        message(10 << 8 | 3, REQUEST | CREATE | ACK, family + table + attribute(3, name("kt")) + hook
                + attribute(7, name(kind))),
        message(0x11, REQUEST, batch),
    )  # fmt: skip


def mount(kind: str) -> None:
    """mount -t KIND none /mnt"""
    if LIBC.mount(b"none", b"/mnt", kind.encode(), 0, None) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    LIBC.umount(b"/mnt")


def alg(kind: str, algorithm: str) -> None:
    with socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET) as cipher:
        cipher.bind((kind, algorithm))


def ldisc(number: str) -> None:
    ends = os.openpty()
    try:
        fcntl.ioctl(ends[1], TIOCSETD, struct.pack("i", int(number)))
    finally:
        for end in ends:
            os.close(end)


def execute(path: str) -> None:
    """The kernel asks before anything of the old program is gone."""
    os.execv(path, [path])


def open_(path: str) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))


def open_socket(family: str, kind: str, protocol: str) -> None:
    socket.socket(int(family), int(kind), int(protocol)).close()


VERBS: dict[str, Callable[..., None]] = {
    "socket": open_socket,
    "mount": mount,
    "link": link,
    "qdisc": qdisc,
    "filter": filter_,
    "chain": chain,
    "alg": alg,
    "exec": execute,
    "open": open_,
    "ldisc": ldisc,
}


def use(text: str) -> tuple[int, float]:
    """One argument: the errno, 0 if there was none, and how many seconds it took."""
    verb, *words = text.split()
    started = time.monotonic()
    code = 0
    try:
        VERBS[verb](*words)
    except OSError as error:
        code = error.errno or -1
    return code, round(time.monotonic() - started, 3)


def main() -> None:
    uses = {text: use(text) for text in sys.argv[1:]}
    json.dump({"pid": int(os.readlink("/proc/self")), "uses": uses}, sys.stdout)


if __name__ == "__main__":
    main()
