"""`kmodd status`: show the state of the daemon."""

from __future__ import annotations

import json

from kmodd.cli import byte_code
from kmodd.cli.client import NotRunning, call
from kmodd.cli.verb import NOT_RUNNING, SOCKET, Option, Verb
from kmodd.host.paths import CONTROL_SOCKET
from kmodd.text import duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _activity(lane: dict[str, Any]) -> str:
    return f"loading {lane['module']} for {duration(lane['since_usec'])}" if lane.get("module") else "idle"


VERB = Verb(
    "status",
    "Show the state of the daemon.",
    (Option("--json", "print the reply of io.kmodd.Status as one line"), SOCKET),
    status=((0, "running"), NOT_RUNNING),
    examples=(("status", "What is it doing?"), ("status --json | jq .counts", "Outcomes by result.")),
)


def main(argv: list[str]) -> int:
    """Print the state and return 0; 7 if the daemon is not running."""
    given = VERB.parse(argv, most=0)
    if isinstance(given, int):
        return given
    try:
        status = call("Status", given.get("socket", CONTROL_SOCKET))
    except NotRunning as error:
        VERB.complain(str(error))
        return 7
    if "json" in given:
        print(json.dumps(status))
        return 0
    dry = ", dry run: nothing is loaded" if status["dry_run"] else ""
    print(f"kmodd {status['version']}, kernel {status['release']}, up {duration(status['uptime_usec'])}{dry}")
    print(f"events: {status['events']} received, {status['overruns']} overruns")
    print(f"queued requests: {status['waiting']}")
    for lane in status["lanes"]:
        print(f"loader {lane['pid']}: {_activity(lane)}")
    if status["stuck"]:
        print(f"stuck in init: {' '.join(status['stuck'])}")
    if status["quarantine"]:
        print(f"crashed, quarantined until the next boot: {' '.join(status['quarantine'])}")
    counts = ", ".join(f"{count} {result}" for result, count in sorted(status["counts"].items()))
    print(f"modules: {counts or 'none requested yet'}")
    if status["records_lost"]:
        print(f"journal: {status['records_lost']} records lost")
    if status["records_held_back"]:
        print(f"journal: {status['records_held_back']} records of failed kernel requests suppressed by rate limit")
    if status["policy"] != "off" or status["phase"] == "sealed":
        print(f"policy: {status['policy']}, phase {status['phase']}")
    for each in status["autoclean"]:
        print(f"autoclean: {each['module']} in {duration(max(each['left_usec'], 0))}, unless used")
    for problem in status["problems"]:
        print(f"problem: {problem}")
    if stale := byte_code.stale():
        print(f"problem: {stale[0]}: {stale[1]}")
    return 0
