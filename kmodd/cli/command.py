"""`kmodd command`: run one install or remove command of modprobe.d; internal, started by kmodd-command.socket."""

from __future__ import annotations

import os
import sys

from kmodd.cli import byte_code
from kmodd.host.sd_listen import passed_connection
from kmodd.loader import command_runner
from kmodd.loader.trusted_paths import Trusted

_USAGE = "usage: kmodd command\n\nRun the command that the connection passed by systemd requests."


def main(argv: list[str]) -> int:
    """Serve the connection that systemd has passed; return 0, whatever the command does, or 2 for wrong usage."""
    fd = passed_connection()
    if fd is None or argv:
        print(_USAGE, file=sys.stderr)
        return 2
    os.set_inheritable(fd, False)
    byte_code.pin()  # the command may outlive these sources, as in an upgrade
    command_runner.serve(fd, Trusted())
    return 0
