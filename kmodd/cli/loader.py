"""`kmodd loader`: the process that loads. systemd or the daemon starts it; people do not."""

from __future__ import annotations

import os
import socket
import sys

from kmodd.host import loader
from kmodd.host.kernel import LinuxKernel

_FIRST_PASSED_FD = 3
"""sd_listen_fds(3): the first descriptor that systemd passes."""


def main(argv: list[str]) -> int:
    """Serve the connection of `--fd N`, or the one systemd passed. Exit 0 at its end, 2 for wrong usage."""
    match argv:
        case ["--fd", number] if number.isdigit():
            fd = int(number)
        case [] if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1":
            fd = _FIRST_PASSED_FD
        case _:
            print("kmodd loader: expected --fd N, or one connection passed by systemd", file=sys.stderr)
            return 2
    with socket.socket(fileno=fd) as connection:
        os.set_inheritable(fd, False)
        loader.serve(connection, LinuxKernel())
    return 0
