"""Mutants of the scheduler's rules: each breaks one rule by a change of its source. An invariant must see each."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType


@dataclass(frozen=True)
class Mutant:
    """A change of one function while it is applied."""

    target: str
    """Module below kmodd, and the name of a function or method in it."""
    old: str
    """Text of its source, once."""
    new: str

    @property
    def name(self) -> str:
        """For the test."""
        return f"{self.target}: {self.old.strip()[:50]}"

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Run with the change. Raises ValueError where the source does not have `old` once."""
        module, _, path = self.target.partition(":")
        found: object = importlib.import_module(f"kmodd.{module}")
        for part in path.split("."):
            found = inspect.getattr_static(found, part)
        function = found.fget if isinstance(found, property) else found
        assert isinstance(function, FunctionType)
        source = textwrap.dedent(inspect.getsource(function))
        if source.count(self.old) != 1:
            raise ValueError(f"{self.target} has {source.count(self.old)} times {self.old!r}, expected once")
        text = "from __future__ import annotations\n" + source.replace(self.old, self.new)
        names: dict[str, object] = dict(function.__globals__)
        exec(compile(text, f"<mutant of {self.target}>", "exec"), names)
        made = names[function.__name__]
        changed = made.fget if isinstance(made, property) else made
        assert isinstance(changed, FunctionType)
        before = function.__code__
        function.__code__ = changed.__code__
        try:
            yield
        finally:
            function.__code__ = before


_S, _F, _B = "engine.scheduler:Scheduler.", "engine.in_flight:InFlight.", "engine.batch:Batch."
_L = "engine.lanes:Lanes."
_E, _R = "engine.engine:Engine.", "engine.replies:Replies."

MUTANTS = (
    Mutant(_S + "_is_taken", "self._state.in_flight.is_taken(name, job) or", ""),
    Mutant(_S + "_has_lane", "not self._state.is_full()", "True"),
    Mutant(_S + "_next_runnable", "generation == state.system.generation or job.begun", "True"),
    Mutant(_S + "run", "state.in_flight.hangs_on(step.module, job)", "False"),
    Mutant(_S + "run", "state.in_flight.park(step.module, state.system.generation, job)", "pass"),
    Mutant(_S + "run", "state.in_flight.plan_ahead(state.system.generation, job)", "pass"),
    Mutant(_S + "_may_follow", "self._is_taken(step.module, job) or", ""),
    Mutant(_S + "_plan_again", "self._state.queue.add(request, first=True)", "pass"),
    Mutant(_S + "_end", "state.finish(job)", "pass"),
    Mutant(_S + "_end", "state.results.note_obstacles(job.outcomes)", "pass"),
    Mutant(_S + "_end", "job.results_age == state.results.age", "True"),
    Mutant(_S + "_end", "state.queue.answer_boot(request.text)", "pass"),
    Mutant(_S + "start_failed", "self._plan_again(job)", "pass"),
    Mutant(_S + "start_failed", "self.run(batch.job)", "pass"),
    Mutant(_S + "give_up", "self._state.in_flight.put_back(batch)", "pass"),
    Mutant(_S + "step_ended", "if outcome:", "if False:"),
    Mutant(_F + "taken", "batch.done + 1 if origin == \"request\" else None", "batch.done + 1"),
    Mutant(_F + "has_room", "len(self.ready) < MAX_READY and", ""),
    Mutant(_F + "put_back", "self.ready[:0] =", "ignored ="),
    Mutant(_F + "pop_released", "is_free(name, job)", "False"),
    Mutant(_F + "hangs_on", "_is_by(asker, batch.pid)", "False"),
    Mutant(_F + "serial", "not batch.is_interactive()", "batch.is_interactive()"),
    Mutant(_F + "has_operator", "request.origin == \"operator\"", "False"),
    Mutant(_B + "catch_up", "isinstance(job, Job)", "False"),
    Mutant(_B + "stop", "if self.stopping or self.is_last:", "if True:"),
    Mutant(_B + "unstarted_jobs", "[] if self.job.begun else [self.job]", "[]"),
    Mutant(_B + "next_step", "self.state != \"running\"", "False"),
    Mutant(_B + "see", "has_run or", ""),
    Mutant(_B + "see", "self.asleep_since = None", "pass"),
    Mutant(_B + "sleeps", "slept >= ASLEEP_AFTER and", ""),
    Mutant(_L + "is_full", "used > 0 and not self._sleep(now)", "False"),
    Mutant(_L + "_sleep", "all(", "any("),
    Mutant(_L + "next_look", "settings.lanes != AUTO or", ""),
    Mutant(_L + "next_look", "self._looked_at + max(", "now + max("),
    Mutant(_L + "see", "self._looked_at = now", "pass"),
    Mutant(_S + "look", "self._state.now >= at", "False"),
    Mutant(_S + "next_look", "or not self._waits_for_lane()", ""),
    Mutant(_S + "_waits_for_turn", "request.origin != \"boot\" or", "request.origin == \"boot\" or"),
    Mutant(_F + "place_of", "return batch.module", "continue"),
    Mutant(_S + "_waits_for_lane", "bool(in_flight.ready) or", ""),
    Mutant(_R + "take", "state.in_flight.put_back(batch)", "pass"),
    Mutant(_R + "take", "state.in_flight.remove(batch)", "pass"),
    Mutant(_R + "_update_loaded", "self._state.system.mark_loaded(batch.module)", "pass"),
    Mutant(_R + "_ended_late", "state.invalidate(\"late_result\")", "pass"),
    Mutant("engine.preflight:preflight_outcome", "refused := state.policy.refusal(request, step)", "refused := None"),
    Mutant("engine.preflight:preflight_outcome", "state.quarantine.has_crashed(name, loaded)", "False"),
    Mutant("engine.preflight:preflight_outcome", "loaded.state(name) == \"live\"", "False"),
    Mutant("engine.preflight:preflight_outcome", "name in state.stuck()", "False"),
    Mutant(_E + "_advance", "(parked := state.in_flight.pop_parked(request.text))", "(parked := None)"),
    Mutant(_E + "_module_event", "state.quarantine.remove(event.sysname)", "pass"),
    Mutant(_E + "_tick", "for request in state.retries.due(now):", "for request in ():"),
    Mutant("engine.state:EngineState.invalidate", "if drop.batches:", "if False:"),
    Mutant("engine.state:EngineState.invalidate", "if drop.plans:", "if False:"),
    Mutant("engine.state:EngineState.invalidate", "if drop.devices:", "if False:"),
    Mutant("engine.timeouts:overdue", "now - batch.since > limit and", "False and"),
    Mutant("engine.firmware_retry:FirmwareRetry.files_changed", "self._start(missing)", "pass"),
    Mutant("planning.job:Job.next_step", "elif self._failed:", "elif False:"),
    Mutant("planning.job:Job.run", "if files and not may(entry):", "if False:"),
    Mutant("planning.job:Job.run", "any(entry.module == file.module for file in files)", "False"),
    Mutant("planning.resolve:_Planner._enter", "for dep in deps:", "for dep in ():"),
    Mutant("state.queue:FairQueue.take", "self._count -= 1", "pass"),
    Mutant("state.queue:DeviceQueue.take", "self._soon or self._later", "self._soon"),
    Mutant("state.retries:Retries.soon", "count >= len(PAUSES) or", ""),
    Mutant("state.result_cache:ResultCache.forget_modules", "self._known.clear()", "pass"),
    Mutant("host.journal:RecordQueue.write", "self._unreported += 1", "pass"),
    Mutant("host.journal:RecordQueue.write", "len(self._waiting) >= self._limit", "False"),
    Mutant("state.quarantine:Quarantine.is_kept_out", "request.origin not in (\"reconcile\", \"coldplug\")", "True"),
)  # fmt: skip
