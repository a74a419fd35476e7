"""`kmodd settle`: wait until all events so far are answered."""

from __future__ import annotations

import argparse
import sys

from kmodd.cli.client import NotRunning, Refused, call
from kmodd.host.paths import CONTROL_SOCKET


def _seconds(text: str) -> float:
    """A number of seconds, for argparse: it names the option and the value where this raises ValueError."""
    seconds = float(text)
    if not 0 <= seconds < 1e9:
        raise ValueError(text)
    return seconds


def main(argv: list[str]) -> int:
    """Exit 0 when quiet, 1 when the time is over, 3 without a module tree, 7 where the daemon is not running."""
    parser = argparse.ArgumentParser(
        "kmodd settle",
        description="Wait until every event that the kernel has sent so far is answered and no module is loading.",
    )
    parser.add_argument("-t", "--timeout", type=_seconds, default=120, metavar="SECONDS", help="default %(default)s")
    parser.add_argument("--socket", default=CONTROL_SOCKET, help="control socket (default %(default)s)")
    options = parser.parse_args(argv)
    try:
        call("Settle", options.socket, timeout_usec=int(options.timeout * 1e6))
    except NotRunning as error:
        print(f"kmodd settle: {error}", file=sys.stderr)
        return 7
    except Refused as refused:
        if refused.error != "io.kmodd.TimedOut":
            print(f"kmodd settle: {refused.parameters.get('message', refused)}", file=sys.stderr)
            return 3
        stuck = ", ".join(refused.parameters.get("stuck", ())) or "none; events keep coming"
        print(f"kmodd settle: not quiet after {options.timeout:g} s; loading: {stuck}", file=sys.stderr)
        return 1
    return 0
