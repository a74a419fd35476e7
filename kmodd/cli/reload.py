"""`kmodd reload`: reload indexes and configuration of the daemon."""

from __future__ import annotations

import argparse
import sys

from kmodd.cli.client import NotRunning, Refused, call
from kmodd.host.paths import CONTROL_SOCKET


def main(argv: list[str]) -> int:
    """Return 0 when reloaded, 1 if the daemon refuses, 3 without a module tree, 7 if the daemon is not running."""
    parser = argparse.ArgumentParser(
        "kmodd reload", description="Reload indexes and configuration of the daemon, and wait until this is done."
    )
    parser.add_argument("--socket", default=CONTROL_SOCKET, help="control socket (default %(default)s)")
    options = parser.parse_args(argv)
    try:
        problems = call("Reload", options.socket)["problems"]
    except NotRunning as error:
        print(f"kmodd reload: {error}", file=sys.stderr)
        return 7
    except Refused as refused:
        print(f"kmodd reload: {refused.parameters.get('message', refused)}", file=sys.stderr)
        return 3 if refused.error == "io.kmodd.NoModuleTree" else 1
    for problem in problems:
        print(f"kmodd reload: Ignored: {problem}", file=sys.stderr)
    return 0
