"""`kmodd loader`: the spawner, which forks the loaders; internal, started by systemd or the daemon."""

from __future__ import annotations

import os
import sys

from kmodd.cli import byte_code
from kmodd.host.sd_listen import passed_connection
from kmodd.host.signals import SignalsBlocked
from kmodd.loader import spawner_process
from kmodd.loader.syscalls import LinuxKernel
from kmodd.loader.trusted_paths import Trusted

_USAGE = """\
usage: kmodd loader [--fd N] [OPTION…]

Fork loaders for the connection passed by systemd, or descriptor N. Options may be repeated:

  --tree DIR  accept module files below DIR, in place of the usual trees
  --conf DIR  run install and remove commands from files in DIR, in place of the usual directories (with --fd)
  --sys DIR   in place of /sys
  --root DIR  prefix of the path of kmodd.conf"""


def main(argv: list[str]) -> int:
    """Serve the connection of `--fd N`, or the one passed by systemd; return 0 at its end, 2 for wrong usage."""
    given: dict[str, list[str]] = {"--fd": [], "--tree": [], "--conf": [], "--sys": [], "--root": []}
    for option, value in zip(argv[::2], argv[1::2], strict=False):
        given.get(option, []).append(value)
    fd = _connection(given["--fd"])
    if fd is None or len(argv) != 2 * sum(map(len, given.values())):
        print(_USAGE, file=sys.stderr)
        return 2
    byte_code.pin()
    usual = Trusted()
    trusted = Trusted(
        tuple(given["--tree"]) or usual.trees,
        tuple(given["--conf"]) or usual.conf,
        (given["--sys"] or [usual.sys])[-1],
        (given["--root"] or [usual.root])[-1],
    )
    os.set_inheritable(fd, False)
    # Outside systemd, signals that stop the daemon are sent to all its processes, and loaders must survive them.
    spawner_process.run(fd, LinuxKernel(), trusted, SignalsBlocked() if given["--fd"] else None)
    return 0


def _connection(numbers: list[str]) -> int | None:
    """Return the descriptor to serve, or None."""
    if numbers:
        return int(numbers[-1]) if numbers[-1].isdigit() else None
    return passed_connection()
