"""`kmodd requester`: the process that looks into others' /proc for the daemon; internal, started by systemd or it."""

from __future__ import annotations

import os
import sys

from kmodd.cli import byte_code
from kmodd.host.process_reader import serve
from kmodd.host.sd_listen import passed_connection

_USAGE = """\
usage: kmodd requester [--fd N]

Tell the daemon which process waits for a module, for the connection passed by systemd, or descriptor N."""


def main(argv: list[str]) -> int:
    """Serve the connection of `--fd N`, or the one passed by systemd; return 0 at its end, 1 without the right to.

    With `--fd`, every capability but CAP_SYS_PTRACE is given up first. Returns 2 for wrong usage.
    """
    match argv:
        case []:
            fd = passed_connection()
        case ["--fd", number] if number.isdigit():
            from kmodd.loader import capabilities  # under systemd the unit does this

            fd = int(number)
            capabilities.drop(frozenset(("CAP_SYS_PTRACE",)))
        case _:
            fd = None
    if fd is None:
        print(_USAGE, file=sys.stderr)
        return 2
    os.set_inheritable(fd, False)
    byte_code.pin()
    try:
        serve(fd)
    except OSError as error:
        print(f"kmodd requester: Failed to read {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0
