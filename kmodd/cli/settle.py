"""`kmodd settle`: wait until all pending events are handled."""

from __future__ import annotations

import argparse
import sys

from kmodd.cli.client import NotRunning, Refused, call
from kmodd.host.paths import CONTROL_SOCKET
from kmodd.text import duration


def _seconds(text: str) -> float:
    """Parse a number of seconds for argparse, which reports the option and the value on ValueError."""
    seconds = float(text)
    if not 0 <= seconds < 1e9:
        raise ValueError(text)
    return seconds


def main(argv: list[str]) -> int:
    """Return 0 when settled, 1 on timeout, 3 without a module tree, 7 if the daemon is not running."""
    parser = argparse.ArgumentParser(
        "kmodd settle",
        description="Wait until every event that the kernel has sent so far is handled and no module is loading.",
    )
    parser.add_argument("-t", "--timeout", type=_seconds, default=120, metavar="SECONDS", help="default %(default)s")
    parser.add_argument("--socket", default=CONTROL_SOCKET, help="control socket (default %(default)s)")
    options = parser.parse_args(argv)
    timeout_usec = int(options.timeout * 1e6)
    try:
        call("Settle", options.socket, timeout_usec=timeout_usec)
    except NotRunning as error:
        print(f"kmodd settle: {error}", file=sys.stderr)
        return 7
    except Refused as refused:
        if refused.error != "io.kmodd.TimedOut":
            print(f"kmodd settle: {refused.parameters.get('message', refused)}", file=sys.stderr)
            return 3
        stuck = ", ".join(refused.parameters.get("stuck", ())) or "none; events keep arriving"
        print(f"kmodd settle: Timed out after {duration(timeout_usec)}; loading: {stuck}", file=sys.stderr)
        return 1
    return 0
