"""The answers of the control socket: `Status`, and the result of Load and Unload."""

from __future__ import annotations

import kmodd
from kmodd.dataclass import dataclass
from kmodd.engine.engine import Engine
from kmodd.host.kernel_facts import read_facts
from kmodd.loader.pool import Loader
from kmodd.planning.job import Job
from kmodd.planning.outcome import Outcome
from kmodd.planning.plan import Insmod
from kmodd.planning.record import record_of
from kmodd.planning.removal import RemovalJob

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any


@dataclass(frozen=True, slots=True)
class Facts:
    """What of `Status` never changes."""

    release: str
    root: str
    directory: str
    """The module directory, as printed."""
    dry_run: bool
    since: float
    """Start of the daemon (monotonic, seconds)."""


_MAX_PROBLEMS = 10
"""Problems of the indexes that are listed."""

NO_WATCH = "no inotify: new modules and files are noticed with the next event only"


def lacks(*, modules: bool, watch: bool, log: bool, buffer: bool) -> list[str]:
    """What works less well here, as sentences: without /proc/modules, a file watch, the kernel log, a large buffer."""
    sentences = {
        "no kernel log: crashes are recorded without it (CAP_SYSLOG, /dev/kmsg)": log,
        NO_WATCH: watch,
        "no /proc/modules: each module is given to the kernel to see whether it is loaded": modules,
        "no CAP_NET_ADMIN: the receive buffer is as small as the system allows": buffer,
    }
    return [sentence for sentence, is_there in sentences.items() if not is_there]


def status(
    facts: Facts,
    engine: Engine,
    loaders: Iterable[tuple[int | None, Loader]],
    lacks: Sequence[str],
    records_lost: int,
    now: float,
) -> dict[str, Any]:
    """The answer to `Status`. `lacks`: what works less well here; `now` is seconds."""
    state = engine.state
    batches = state.in_flight.batches
    return {
        "version": kmodd.__version__,
        "release": facts.release,
        "root": facts.root,
        "directory": facts.directory,
        "dry_run": facts.dry_run,
        "uptime_usec": int((now - facts.since) * 1e6),
        "events": state.reporter.counters.events,
        "overruns": state.reporter.counters.overruns,
        "repeats": state.reporter.counters.repeats,
        "waiting": len(state.queue) + len(state.in_flight.parked) + len(state.in_flight.ready),
        "lanes": [
            {"pid": loader.pid, "module": batches[number].module, "since_usec": batches[number].usec(now)}
            if number in batches
            else {"pid": loader.pid}
            for number, loader in loaders
            if number is None or number in batches
        ],
        "stuck": state.stuck(),
        "quarantine": sorted(state.quarantine.crashed),
        "policy": state.policy.mode,
        "phase": state.policy.phase,
        "autoclean": [
            {"module": module, "left_usec": int(left * 1e6)}
            for module, left in state.autoclean.waiting(state.system.settings, now)
        ],
        "counts": dict(state.reporter.counters.results),
        "records_held_back": state.reporter.records_held_back,
        "records_lost": records_lost,
        "problems": _problems(facts, engine, lacks),
    }


def _problems(facts: Facts, engine: Engine, lacks: Sequence[str]) -> list[str]:
    """What is wrong now, or works less well than it could."""
    kernel, snapshot = read_facts(facts.root), engine.state.system.snapshot
    found = (
        engine.state.system.no_tree,
        engine.state.supply.why,
        engine.state.system.broken,
        engine.state.policy.broken,
        *(str(problem) for problem in (snapshot.catalog.problems[:_MAX_PROBLEMS] if snapshot else ())),
        "kernel.panic_on_oops=1: a module that crashes takes the machine down" if kernel.panic_on_oops else "",
        "kernel.modules_disabled=1: nothing can be loaded until the next boot" if kernel.modules_disabled else "",
    )
    return [problem for problem in (*found, *lacks) if problem]


def loaded(job: Job) -> dict[str, Any]:
    """The answer to `Load`: each outcome belongs to one entry of the plan, in order."""
    goals = job.plan.goals
    entries = [(number, entry) for number, goal in enumerate(goals) for entry in goal.entries]
    results = []
    for (number, entry), outcome in zip(entries, job.outcomes, strict=False):
        tried = isinstance(entry, Insmod) and outcome.path
        action = f"insmod {entry.path} {entry.options}" if isinstance(entry, Insmod) and tried else ""
        results.append(_result(outcome, number, entry.required, action))
    if not entries:
        results = [_result(outcome, 0, True, "") for outcome in job.outcomes]
    shown = [{"module": goal.module, "complaints": list(goal.complaints)} for goal in goals]
    return {"results": results, "goals": shown, "complaints": list(job.plan.complaints)}


def removed(job: RemovalJob) -> dict[str, Any]:
    """The answer to `Unload`."""
    results = []
    for outcome in job.outcomes:
        tried = outcome.result in ("removed", "not_removed") and not outcome.at
        results.append(_result(outcome, 0, True, f"rmmod {outcome.module}" if tried else ""))
    return {"results": results, "failed": job.failed, "complaints": list(job.plan.complaints)}


def _result(outcome: Outcome, goal: int, required: bool, action: str) -> dict[str, Any]:
    return {
        "module": outcome.module,
        "result": outcome.result,
        "because": str(outcome.because),
        "errno": outcome.errno,
        "duration_usec": outcome.duration_usec,
        "message": record_of(outcome).message,
        "goal": goal,
        "required": required,
        "action": action,
    }
