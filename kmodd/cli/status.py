"""`kmodd status`: show the state of the daemon."""

from __future__ import annotations

import json
import os
import sys
import time

from kmodd.cli import byte_code
from kmodd.cli.client import NotRunning
from kmodd.cli.daemon_away import call_awaited, not_running
from kmodd.cli.terminal import Colour, columns_of, paint, show
from kmodd.cli.unbound import count_unbound
from kmodd.cli.verb import NOT_RUNNING, SOCKET, Option, Verb
from kmodd.host.paths import CONTROL_SOCKET
from kmodd.text import count_of, duration, printable, shortened

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Line = tuple[str, str, Colour]
    """Label, text, and its colour on a terminal."""

VERB = Verb(
    "status",
    "Show the state of the daemon: since when it runs, what it loads now, what has failed or was refused, devices "
    "without a driver, the policy, and the age of the module index.",
    (Option("--json", "print the reply of io.kmodd.Status as one line"), SOCKET),
    status=((0, "running"), NOT_RUNNING),
    examples=(
        ("status", "What does it do, and is anything wrong?"),
        ("status --json | jq .counts", "Outcomes by result."),
    ),
)

_WORDS = {
    "loaded": "loaded", "live": "there already", "builtin": "built in", "nomatch": "requests without a module",
    "not_attempted": "not tried", "removed": "removed", "in_use": "in use", "absent": "not there",
    "not_removed": "not removed",
}  # fmt: skip
"""Result → how it is called here; others by their own name."""
_LABEL = 10


def main(argv: list[str]) -> int:
    """Print the state and return 0; 7 if the daemon is not running."""
    given = VERB.parse(argv, most=0)
    if isinstance(given, int):
        return given
    path = given.get("socket", CONTROL_SOCKET)
    try:
        status = call_awaited("Status", path)
    except NotRunning as error:
        return not_running(VERB, error, path)
    if "json" in given:
        print(json.dumps(status))
        return 0
    dry = ", dry run: nothing is loaded" if status["dry_run"] else ""
    width = columns_of(sys.stdout)
    lines = [("kmodd", f"{status['version']}, kernel {status['release']}{dry}", ""), *_lines(status, path)]
    for label, text, colour in lines:
        line = f"{label:>{_LABEL}}: {printable(text)}"
        if width is not None:
            line = shortened(line, max(width, _LABEL + 1))
        show(paint(line, colour, sys.stdout) + "\n")
    return 0


def _lines(status: dict[str, Any], path: str) -> list[Line]:
    began = time.time() - status["uptime_usec"] / 1e6
    since = time.strftime("%a %Y-%m-%d %H:%M:%S %Z", time.localtime(began))
    counts = ", ".join(f"{count} {_WORDS.get(name, name)}" for name, count in sorted(status["counts"].items()))
    lines: list[Line] = [
        ("Running", f"since {since}; {duration(status['uptime_usec'])} ago", ""),
        ("Now", _activity(status), ""),
        ("Modules", counts or "none asked for yet", ""),
    ]
    if status.get("lanes_auto"):
        lines.insert(2, ("Lanes", f"auto: one, and up to {status['lanes_limit']} while loaders sleep", ""))
    if status["stuck"]:
        lines.append(("Hanging", f"{', '.join(status['stuck'])}: their start does not end", "red"))
    if status["quarantine"]:
        lines.append(("Crashed", f"{', '.join(status['quarantine'])}: not loaded again before the next boot", "red"))
    lines += [
        ("Failed", _incident(status["last_failure"]), "red" if status["last_failure"] else ""),
        ("Refused", _incident(status["last_refusal"]), "yellow" if status["last_refusal"] else ""),
    ]
    lines += [_devices(status, path), ("Policy", _policy(status), ""), _index(status)]
    for each in status["autoclean"]:
        left = duration(max(each["left_usec"], 0))
        lines.append(("Autoclean", f"{each['module']} is removed in {left}, unless it is used", ""))
    if status["overruns"]:
        lines.append(
            ("Events", f"dropped by the kernel {count_of(status['overruns'], 'time')}; all devices were read again", "")
        )
    if status["records_lost"]:
        lines.append(("Journal", f"{count_of(status['records_lost'], 'record')} lost", "yellow"))
    if status["readers_dropped"]:
        text = f"{count_of(status['readers_dropped'], 'caller')} disconnected for not reading the reply"
        lines.append(("Readers", text, "yellow"))
    if status["records_held_back"]:
        held_back = count_of(status["records_held_back"], "repeated record")
        lines.append(("Journal", f"{held_back} of refused or failed requests not written yet", ""))
    stale = byte_code.stale()
    problems = [*status["problems"], *([f"{stale[0]}: {stale[1]}"] if stale else [])]
    return [*lines, *(("Problem", problem, "yellow") for problem in problems)]


def _activity(status: dict[str, Any]) -> str:
    loading = [f"{lane['module']} for {duration(lane['since_usec'])}" for lane in status["lanes"] if lane.get("module")]
    waiting = f"; {count_of(status['waiting'], 'request')} waiting" if status["waiting"] else ""
    return (f"loading {', '.join(loading)}" if loading else "idle") + waiting


def _incident(incident: dict[str, Any] | None) -> str:
    if incident is None:
        return "nothing"
    why = f" ({incident['why']})" if incident["why"] else ""
    return f"{incident['module']} {incident['result']}{why} {duration(incident['ago_usec'])} ago"


def _devices(status: dict[str, Any], path: str) -> Line:
    """Return how many devices have no driver though a module matches. path: socket of the daemon."""
    if status["root"]:
        return "Devices", "not known: the daemon has another root", ""
    count = count_unbound(status, path)
    if count is None:
        return "Devices", "not known without a module tree", ""
    if not count:
        return "Devices", "each one with a matching module has a driver", ""
    return "Devices", f"{count} without a driver for which a module matches: `kmodd devices --unbound`", "yellow"


def _policy(status: dict[str, Any]) -> str:
    mode = {"off": "off", "observe": "rules are observed", "enforce": "rules are enforced"}[status["policy"]]
    sealed = ", sealed until the next boot or `kmodd seal --undo`" if status["phase"] == "sealed" else ""
    booting = ", devices of the boot are not all answered yet" if status["phase"] == "boot" else ""
    return f"{mode}, {status['rules']} in force{sealed}{booting}"


def _index(status: dict[str, Any]) -> Line:
    directory = status["root"] + status["directory"]
    times = []
    for name in ("modules.dep.bin", "modules.dep"):
        try:
            times.append(os.stat(f"{directory}/{name}").st_mtime)
        except OSError:
            continue
    if not times:
        return "Index", f"none in {directory}; run depmod", "red"
    age = max(time.time() - max(times), 0)
    days = int(age // 86400)
    shown = f"{days} days" if days > 1 else duration(int(age * 1e6))
    return "Index", f"{directory}, {shown} old", ""
