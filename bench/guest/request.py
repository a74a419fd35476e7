"""In the guest: time system calls that make the kernel request a module, with two helpers in turn.

    request.py ROUNDS HELPER PEER

Prints a JSON object: case → [[seconds with HELPER, seconds with PEER], ...]. Cases: an unknown name; a live module,
requested after an unknown name; a module that is loaded, and unloaded afterwards.
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
    """Request net-pf-9: X.25 is not built."""
    with contextlib.suppress(OSError):
        socket.socket(AF_X25, socket.SOCK_SEQPACKET).close()


def live() -> None:
    """Request netdev-ext4, which is unknown, then ext4, which is live (net/core/dev_ioctl.c, dev_load)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as some, contextlib.suppress(OSError):
        fcntl.ioctl(some, SIOCGIFFLAGS, LIVE.ljust(40, b"\0"))


def load() -> None:
    """Request net-pf-15, the module af_key."""
    socket.socket(AF_KEY, socket.SOCK_RAW, PF_KEY_V2).close()


def unload() -> None:
    """Remove af_key, not its dependencies."""
    if libc.syscall(SYS_DELETE_MODULE, b"af_key", O_NONBLOCK):
        sys.exit(f"request: Failed to remove af_key: errno {ctypes.get_errno()}")


def timed(helper: str, case: Callable[[], None]) -> float:
    """Return the seconds of `case` with this helper."""
    with open("/proc/sys/kernel/modprobe", "w") as file:
        file.write(helper)
    # Not traced for the peer: kmodd would track requests whose helper never connects.
    with open(TRACING_ON, "w") as file:
        file.write("1" if helper == sys.argv[2] else "0")
    begin = time.monotonic()
    case()
    seconds = time.monotonic() - begin
    if case is load:
        unload()
    return seconds


def main() -> None:
    """Time each case ROUNDS times with the helpers in turn, after one round that is not counted."""
    rounds, helpers = int(sys.argv[1]), sys.argv[2:4]
    found: dict[str, list[list[float]]] = {}
    for case in (unknown, live, load):
        for helper in helpers:
            timed(helper, case)
        found[case.__name__] = [[timed(helper, case) for helper in helpers] for _ in range(rounds)]
    print(json.dumps(found))


main()
