"""The answers of the control socket: `Status`, and the result of Load and Unload."""

from __future__ import annotations

import errno

import kmodd
from kmodd.config.kmodd_conf import AUTO
from kmodd.engine.engine import Engine
from kmodd.engine.events import AnyJob
from kmodd.host.kernel_facts import read_facts
from kmodd.host.sd_notify import Notify
from kmodd.host.tree import Tree
from kmodd.loader.pool import Loader
from kmodd.planning.job import Job
from kmodd.planning.outcome import Outcome
from kmodd.planning.plan import Insmod
from kmodd.planning.record import record_of
from kmodd.planning.removal import RemovalJob
from kmodd.state.tally import BOUNDS_USEC, Incident, Tally
from kmodd.text import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any


_MAX_PROBLEMS = 10
"""Problems of the indexes that are listed."""

SHOW_EVERY = 5.0
"""Seconds between two lines of `systemctl status` while modules load."""

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


class StatusReport:
    """The state of the daemon, for callers of `Status` and the service manager."""

    def __init__(self, tree: Tree, engine: Engine, *, dry_run: bool, since: float) -> None:
        """Count from now on. since: start of the daemon (monotonic, seconds)."""
        self._tree = tree
        self._engine = engine
        self._dry_run = dry_run
        self._since = since
        self._tally = Tally()
        self._shown = ""
        self._shown_at = 0.0

    def finished(self, job: AnyJob, now: float) -> None:
        """Count the outcomes of a complete job. now: monotonic, seconds."""
        self._tally.add(job.outcomes, now)

    def reply(
        self,
        loaders: Iterable[tuple[int | None, Loader]],
        lacks: Sequence[str],
        records_lost: int,
        now: float,
        readers_dropped: int = 0,
    ) -> dict[str, Any]:
        """Return the answer to `Status`. lacks: what works less well here. now: seconds."""
        tree, state, tally = self._tree, self._engine.state, self._tally
        batches = state.in_flight.batches
        return {
            "version": kmodd.__version__,
            "release": tree.release,
            "root": tree.root,
            "directory": tree.directory,
            "dry_run": self._dry_run,
            "uptime_usec": int((now - self._since) * 1e6),
            "events": state.reporter.counters.events,
            "overruns": state.reporter.counters.overruns,
            "repeats": state.reporter.counters.repeats,
            "waiting": self._waiting(),
            "lanes": [
                {"pid": loader.pid, "module": batches[number].module, "since_usec": batches[number].usec(now)}
                if number in batches
                else {"pid": loader.pid}
                for number, loader in loaders
                if number is None or number in batches
            ],
            "lanes_auto": state.system.settings.lanes == AUTO,
            "lanes_limit": state.lanes.limit(state.system.settings),
            "stuck": state.stuck(),
            "quarantine": sorted(state.quarantine.crashed),
            "policy": state.policy.mode,
            "rules": state.policy.rules,
            "phase": state.policy.phase,
            "autoclean": [
                {"module": module, "left_usec": int(left * 1e6)}
                for module, left in state.autoclean.waiting(state.system.settings, now)
            ],
            "counts": dict(state.reporter.counters.results),
            "outcomes": [
                {"source": source, "result": result, "count": count}
                for (source, result), count in sorted(tally.results.items())
            ],
            "inits": {"bounds_usec": list(BOUNDS_USEC), "counts": tally.inits, "sum_usec": tally.init_usec},
            "refusals": tally.refusals,
            "last_failure": _incident(tally.last_failure, now),
            "last_refusal": _incident(tally.last_refusal, now),
            "records_held_back": state.reporter.records_held_back,
            "records_lost": records_lost,
            "readers_dropped": readers_dropped,
            "problems": _problems(tree.root, self._engine, lacks),
        }

    def greeting(self) -> str:
        """Return the sentence that the daemon begins with: kernel, policy, and the modules that were there before."""
        state = self._engine.state
        parts = [f"Listening, kernel {self._tree.release}"]
        if self._dry_run:
            parts.append("dry run: nothing is loaded")
        if state.policy.mode != "off":
            parts.append(f"policy {state.policy.mode} ({count_of(state.policy.rules, 'rule')})")
        if there := len(state.system.loaded().modules):
            parts.append(f"{count_of(there, 'module')} loaded before")
        return ", ".join(parts)

    def greeting_fields(self) -> tuple[tuple[str, str], ...]:
        """Return the fields of the record that the daemon begins with: its version, and modules that were there."""
        there = self._engine.state.system.loaded().modules
        return ("KMODD_VERSION", kmodd.__version__), *(("KMODD_LOADED_BEFORE", name) for name in there)

    def show(self, notify: Notify, now: float) -> None:
        """Set the line of `systemctl status` if it has changed; while modules load, no more often than needed."""
        if not self._engine.is_idle and now < self._shown_at + SHOW_EVERY:
            return
        text = self._line()
        if text != self._shown:
            self._shown, self._shown_at = text, now
            notify.status(text)

    def _line(self) -> str:
        state = self._engine.state
        counts, waiting = state.reporter.counters.results, self._waiting()
        loading = [batch.module for batch in state.in_flight.awaited()]
        parts = [
            state.system.no_tree or ("Loading " + ", ".join(sorted(loading)) if loading else "Idle"),
            f"{count_of(waiting, 'request')} waiting" if waiting else "",
            f"{count_of(counts.get('loaded', 0), 'module')} loaded",
            *(
                f"{counts[result]} {result}"
                for result in ("failed", "crashed", "denied", "blocked")
                if counts.get(result)
            ),
            f"still starting: {', '.join(state.stuck())}" if state.stuck() else "",
        ]
        return "; ".join(part for part in parts if part) + (" (dry run)" if self._dry_run else "")

    def _waiting(self) -> int:
        state = self._engine.state
        return len(state.queue) + len(state.in_flight.parked) + len(state.in_flight.ready)


def _incident(incident: Incident | None, now: float) -> dict[str, Any] | None:
    """Return a failure or refusal without what only root may know: commands, and processes of others."""
    if incident is None:
        return None
    outcome = incident.outcome
    code = errno.errorcode.get(outcome.errno, str(outcome.errno)) if outcome.errno else ""
    words = outcome.load_error.words if outcome.load_error else ""
    why = str(outcome.at) if outcome.at else ", ".join(part for part in (code, words, outcome.detail) if part)
    ago = int((now - incident.at) * 1e6)
    return {"module": outcome.module, "result": outcome.result, "why": why, "ago_usec": ago}


def _problems(root: str, engine: Engine, lacks: Sequence[str]) -> list[str]:
    """What is wrong now, or works less well than it could."""
    kernel, snapshot = read_facts(root), engine.state.system.snapshot
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
