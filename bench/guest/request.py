"""In the guest: system calls that make the kernel ask for a module, with one helper and the other in turn.

    request.py ROUNDS HELPER PEER

Prints one JSON object: case → [[seconds with HELPER, seconds with PEER], ...]. Cases: a name that nobody knows; one
that is live (asked for after a miss); one that has to be loaded, and is unloaded again.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import socket
import sys
import time
from collections.abc import Callable

AF_X25, AF_KEY, PF_KEY_V2 = 9, 15, 2
SIOCGIFFLAGS = 0x8913
SYS_DELETE_MODULE, O_NONBLOCK = 176, 0o4000
LIVE = b"ext4"
TRACING_ON = "/sys/kernel/tracing/instances/kmodd/tracing_on"

libc = ctypes.CDLL(None, use_errno=True)


def unknown() -> None:
    """net-pf-9: X.25 is not built."""
    with contextlib.suppress(OSError):
        socket.socket(AF_X25, socket.SOCK_SEQPACKET).close()


def live() -> None:
    """An interface called like a live module: netdev-ext4, a miss, then ext4 (net/core/dev_ioctl.c, dev_load)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as some, contextlib.suppress(OSError):
        fcntl.ioctl(some, SIOCGIFFLAGS, LIVE.ljust(40, b"\0"))


def load() -> None:
    """net-pf-15, the module af_key."""
    socket.socket(AF_KEY, socket.SOCK_RAW, PF_KEY_V2).close()


def unload() -> None:
    """Remove af_key; what it needs stays."""
    if libc.syscall(SYS_DELETE_MODULE, b"af_key", O_NONBLOCK):
        sys.exit(f"request: af_key does not go: errno {ctypes.get_errno()}")


def timed(helper: str, case: Callable[[], None]) -> float:
    """Seconds of `case` with this helper."""
    with open("/proc/sys/kernel/modprobe", "w") as file:
        file.write(helper)
    # To the peer nobody listens: kmodd would be told of requests whose helper never comes to it, and look after them.
    with open(TRACING_ON, "w") as file:
        file.write("1" if helper == sys.argv[2] else "0")
    begin = time.monotonic()
    case()
    seconds = time.monotonic() - begin
    if case is load:
        unload()
    return seconds


def main() -> None:
    """Each case some times, the helpers in turn; one turn of each is not counted."""
    rounds, helpers = int(sys.argv[1]), sys.argv[2:4]
    found: dict[str, list[list[float]]] = {}
    for case in (unknown, live, load):
        for helper in helpers:
            timed(helper, case)
        found[case.__name__] = [[timed(helper, case) for helper in helpers] for _ in range(rounds)]
    print(json.dumps(found))


main()
