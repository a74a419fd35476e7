"""`kmodd settle`: wait until all events so far are answered."""

from __future__ import annotations

import argparse
import sys

from kmodd.cli.call import NotRunning, Refused, call
from kmodd.host.control import CONTROL_SOCKET


def main(argv: list[str]) -> int:
    """Exit 0 when quiet, 1 when the time is over, 7 where the daemon is not running."""
    parser = argparse.ArgumentParser(
        "kmodd settle",
        description="Wait until every event that the kernel has sent so far is answered and no module is loading.",
    )
    parser.add_argument("-t", "--timeout", type=float, default=120, metavar="SECONDS", help="default %(default)s")
    parser.add_argument("--socket", default=CONTROL_SOCKET, help="control socket (default %(default)s)")
    options = parser.parse_args(argv)
    try:
        call("Settle", options.socket, timeout_usec=int(options.timeout * 1e6))
    except NotRunning as error:
        print(f"kmodd settle: {error}", file=sys.stderr)
        return 7
    except Refused as refused:
        stuck = ", ".join(refused.parameters.get("stuck", ())) or "none; events keep coming"
        print(f"kmodd settle: not quiet after {options.timeout:g} s; loading: {stuck}", file=sys.stderr)
        return 1
    return 0
