"""`kmodd metrics`: print the counters of the daemon as OpenMetrics, or replace a file of node_exporter's collector."""

from __future__ import annotations

import time

from kmodd.cli.client import NotRunning, call
from kmodd.cli.daemon_away import not_running
from kmodd.cli.terminal import show
from kmodd.cli.unbound import count_unbound
from kmodd.cli.verb import NOT_RUNNING, SOCKET, Option, Verb
from kmodd.host.atomic_files import write_aside
from kmodd.host.paths import CONTROL_SOCKET
from kmodd.text import encode, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, TypeVar

    _Key = TypeVar("_Key")

    Sample = tuple[str, dict[str, str], float]
    """End of the sample's name, labels, value."""

VERB = Verb(
    "metrics",
    "Print the counters of the daemon as OpenMetrics text (at most 200 series), for node_exporter's textfile "
    "collector. docs/FLEET.md has a timer, and alerts. Where the daemon does not run, there is kmodd_up 0 alone.",
    (Option("--output", "replace this file by a rename, in place of standard output", "FILE"), SOCKET),
    status=((0, "done"), (1, "FILE cannot be written"), NOT_RUNNING),
    examples=(
        ("metrics", "Show them."),
        ("metrics --output /var/lib/prometheus/node-exporter/kmodd.prom", "As kmodd-metrics.service does."),
    ),
)

MAX_OUTCOMES = 90
"""Series of outcomes; those with the smallest numbers are summed up as `other`."""
MAX_RULES = 30
"""Series of refusals, likewise."""
OTHER = "other"


def main(argv: list[str]) -> int:
    """Print or write the metrics and return 0; 1 if they cannot be written, 7 if the daemon is not running."""
    given = VERB.parse(argv, most=0)
    if isinstance(given, int):
        return given
    path, result = given.get("socket", CONTROL_SOCKET), 0
    try:
        status = call("Status", path)
        unbound = None if status["root"] else count_unbound(status, path)
        text = render(status, unbound, time.time())
    except NotRunning as error:
        result = not_running(VERB, error, path)
        text = render(None, None, time.time())
    if "output" not in given:
        show(text)
        return result
    try:
        write_aside(given.get("output"), encode(text))
    except OSError as error:
        VERB.complain(f"Failed to write {given.get('output')}: {error.strerror}")
        return 1
    return result


def render(status: dict[str, Any] | None, unbound: int | None, now: float) -> str:
    """Return the OpenMetrics text.

    status: the reply of io.kmodd.Status; None: the daemon does not run. unbound: number of devices without a driver;
    None: not known. now: seconds since 1970.

    Prometheus' older text format accepts the same text: there are no `info` and `stateset`, and the end is a comment.
    """
    up = _family("kmodd_up", "gauge", "Whether the daemon answers.", [("", {}, status is not None)])
    return up + ("" if status is None else _families(status, unbound, now)) + "# EOF\n"


def _families(status: dict[str, Any], unbound: int | None, now: float) -> str:
    outcomes = {(each["source"], each["result"]): each["count"] for each in status["outcomes"]}
    build = {"version": status["version"], "kernel": status["release"], "policy": status["policy"]}
    began = round(now - status["uptime_usec"] / 1e6, 3)
    busy = sum("module" in lane for lane in status["lanes"])
    families: list[tuple[str, str, str, list[Sample]]] = [
        ("kmodd_build", "gauge", "Version of kmodd and of the kernel, and the policy.", [("", build, 1)]),
        ("kmodd_start_time_seconds", "gauge", "Start of the daemon, since 1970.", [("", {}, began)]),
        ("kmodd_outcomes", "counter", "Modules by source of the request and result.", _outcomes(outcomes)),
        ("kmodd_init_seconds", "histogram", "Duration of successful loads.", _histogram(status["inits"])),
        ("kmodd_refusals", "counter", "Refusals by the place of the rule.", _refusals(status["refusals"])),
        ("kmodd_events", "counter", "Device events of the kernel.", [("_total", {}, status["events"])]),
        ("kmodd_overflows", "counter", "Times the kernel has dropped events.", [("_total", {}, status["overruns"])]),
        ("kmodd_records_lost", "counter", "Lost journal records.", [("_total", {}, status["records_lost"])]),
        ("kmodd_readers_dropped", "counter", "Callers that did not read.", [("_total", {}, status["readers_dropped"])]),
        ("kmodd_waiting_requests", "gauge", "Requests that wait.", [("", {}, status["waiting"])]),
        ("kmodd_loading_modules", "gauge", "Modules that are being loaded.", [("", {}, busy)]),
        ("kmodd_stuck_modules", "gauge", "Modules whose init does not return.", [("", {}, len(status["stuck"]))]),
        ("kmodd_crashed_modules", "gauge", "Modules that crashed.", [("", {}, len(status["quarantine"]))]),
        ("kmodd_problems", "gauge", "Problems that kmodd status shows.", [("", {}, len(status["problems"]))]),
    ]  # fmt: skip
    if unbound is not None:
        text = "Devices without a driver for which a module matches."
        families.append(("kmodd_unbound_devices", "gauge", text, [("", {}, unbound)]))
    return "".join(_family(*family) for family in families)


def _outcomes(outcomes: dict[tuple[str, str], int]) -> list[Sample]:
    kept = _largest(outcomes, MAX_OUTCOMES)
    samples: list[Sample] = [
        ("_total", {"source": source, "result": result}, outcomes[source, result]) for source, result in sorted(kept)
    ]
    rest = sum(count for key, count in outcomes.items() if key not in kept)
    return [*samples, ("_total", {"source": OTHER, "result": OTHER}, rest)] if rest else samples


def _refusals(refusals: dict[str, int]) -> list[Sample]:
    kept = _largest({rule: count for rule, count in refusals.items() if rule != OTHER}, MAX_RULES)
    samples: list[Sample] = [("_total", {"rule": rule}, refusals[rule]) for rule in sorted(kept)]
    rest = sum(count for rule, count in refusals.items() if rule not in kept)
    return [*samples, ("_total", {"rule": OTHER}, rest)] if rest else samples


def _largest(counts: dict[_Key, int], most: int) -> set[_Key]:
    return set(sorted(counts, key=lambda key: -counts[key])[:most])


def _histogram(inits: dict[str, Any]) -> list[Sample]:
    """Return cumulative buckets, as both formats have them, in seconds."""
    samples: list[Sample] = []
    total = 0
    for bound, count in zip([*(usec / 1e6 for usec in inits["bounds_usec"]), None], inits["counts"], strict=True):
        total += count
        samples.append(("_bucket", {"le": "+Inf" if bound is None else repr(float(bound))}, total))
    return [*samples, ("_sum", {}, inits["sum_usec"] / 1e6), ("_count", {}, total)]


def _family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> str:
    lines = [f"# TYPE {name} {kind}", f"# HELP {name} {text}"]
    for end, labels, value in samples:
        pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        number = int(value) if float(value).is_integer() else value
        lines.append(f"{name}{end}{{{pairs}}} {number}" if pairs else f"{name}{end} {number}")
    return "".join(f"{line}\n" for line in lines)


def _escaped(text: str) -> str:
    """Return a label's value; the text of a rule may have any byte of its file."""
    return printable(text).replace("\\", "\\\\").replace('"', '\\"').encode("utf-8", "replace").decode()
