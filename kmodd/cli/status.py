"""`kmodd status`: what the daemon does now."""

from __future__ import annotations

import argparse
import json
import sys

from kmodd.cli.client import NotRunning, call
from kmodd.host.paths import CONTROL_SOCKET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _at_work(lane: dict[str, Any]) -> str:
    return f"{lane['module']} for {lane['since_usec'] / 1e6:.1f} s" if lane.get("module") else "idle"


def main(argv: list[str]) -> int:
    """Exit 0; 7 where the daemon is not running."""
    parser = argparse.ArgumentParser("kmodd status", description="Say what the daemon does now.")
    parser.add_argument("--json", action="store_true", help="the answer of io.kmodd.Status as it is")
    parser.add_argument("--socket", default=CONTROL_SOCKET, help="control socket (default %(default)s)")
    options = parser.parse_args(argv)
    try:
        status = call("Status", options.socket)
    except NotRunning as error:
        print(f"kmodd status: {error}", file=sys.stderr)
        return 7
    if options.json:
        print(json.dumps(status))
        return 0
    dry = ", dry run: nothing is loaded" if status["dry_run"] else ""
    print(f"kmodd {status['version']}, kernel {status['release']}, up {status['uptime_usec'] / 1e6:.1f} s{dry}")
    print(f"events: {status['events']} received, {status['overruns']} times some were lost")
    print(f"requests that wait: {status['waiting']}")
    for lane in status["lanes"]:
        print(f"loader {lane['pid']}: {_at_work(lane)}")
    if status["stuck"]:
        print(f"stuck in their init, left alone: {' '.join(status['stuck'])}")
    if status["quarantine"]:
        print(f"crashed, not tried again before the next boot: {' '.join(status['quarantine'])}")
    counts = ", ".join(f"{count} {result}" for result, count in sorted(status["counts"].items()))
    print(f"modules: {counts or 'nothing was asked for yet'}")
    if status["records_lost"]:
        print(f"journal: {status['records_lost']} records were lost")
    if status["records_held_back"]:
        print(f"journal: {status['records_held_back']} records of kernel requests were like others of that minute")
    if status["policy"] != "off" or status["phase"] == "sealed":
        print(f"policy: {status['policy']}, phase {status['phase']}")
    for each in status["autoclean"]:
        print(f"autoclean: {each['module']} in {each['left_usec'] / 1e6:.0f} s, unless it is used")
    for problem in status["problems"]:
        print(f"problem: {problem}")
    return 0
