"""Plan and execute removals: `Request` and `Snapshot` in, `RemovalPlan` out; `RemovalJob` is a plan in execution.

The rules are those of kmod 34's `modprobe -r` (kmod tools/modprobe.c), including corner cases:

- A module that is not loaded needs no removal, unless it has a remove command. If all that the name stands for are
  aliases of modules that do not exist, nothing is found (kmod reports success).
- The order is: modules of the post-softdeps, last one first; on request, modules that use the module, each after
  those that use it (kmod removes only the first level); the module, if
  nothing uses it; its unused dependencies; modules of the pre-softdeps, last one first.
- Failures of softdeps and dependencies are ignored; only the module and its holders count.
- Dependencies are checked once, in the order of loading, so one that only another dependency uses stays.

The plan has the intended removals and their reasons. Each removal changes what can be removed next, so the job reads
/proc/modules before each step.
"""

from __future__ import annotations

import errno

from kmodd.config.modprobe_d import Command, Softdep
from kmodd.dataclass import dataclass, field, replace
from kmodd.errors import UnmatchedBracket
from kmodd.index.catalog import Hit, Snapshot, lookup
from kmodd.kernel.proc_modules import Loaded
from kmodd.names import ModuleName, module_of_path
from kmodd.planning.outcome import Outcome, Result, not_attempted
from kmodd.planning.plan import Cause, Reason, RemovalStep, RemoveCommand, Rmmod
from kmodd.planning.progress import Progress
from kmodd.planning.request import RemovalOptions, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    _Walk = Generator[RemovalStep, Outcome | None, int]
    """Yields steps, receives the outcome of each, and returns an errno, 0 for success."""

MAX_DEPTH = 200
"""Limit of nested softdeps. Deeper ones are a mistake, and kmod would crash."""

_NO_SOFTDEP = "failed to lookup dependency '{}', continuing anyway."


@dataclass(frozen=True, slots=True)
class Removal:
    """A module to remove, and the modules to remove with it."""

    module: ModuleName
    because: Reason
    command: Command | None = None
    builtin: bool = False
    before: tuple[Removal, ...] = ()
    """Post-softdeps, in the order of removal; their failures are ignored."""
    holders: tuple[Removal, ...] = ()
    """Modules that use this one; a failure ends the removal."""
    unneeded: tuple[ModuleName, ...] = ()
    """Dependencies; each is removed if nothing uses it any more."""
    after: tuple[Removal, ...] = ()
    """Pre-softdeps, in the order of removal; their failures are ignored."""
    exists: bool = True
    """False: the target of an alias, neither loaded nor in the tree."""


@dataclass(frozen=True, slots=True)
class RemovalPlan:
    """The removals of one request; no targets if nothing matched."""

    request: Request
    targets: tuple[Removal, ...]
    complaints: tuple[str, ...] = ()
    """Messages that kmod writes to standard error for the plan at level ERROR, without that word."""
    bad_name: bool = False
    """Whether the name has an unmatched bracket; kmod fails without a message."""


def plan_removal(request: Request, snapshot: Snapshot, loaded: Loaded, present: Callable[[str], bool]) -> RemovalPlan:
    """Return the plan to remove the modules of `request`, with the options `request.removing`.

    loaded: the modules that the kernel has. present: whether the file at a path exists.
    """
    planner = _Planner(snapshot, loaded, present, request.removing or RemovalOptions())
    try:
        hits = lookup(request.text, snapshot)
    except UnmatchedBracket:
        return RemovalPlan(request, (), bad_name=True)
    targets = tuple(planner.target(request, hit) for hit in hits)
    return RemovalPlan(request, targets, tuple(planner.complaints))


class _Planner:
    """Planner of one request."""

    def __init__(
        self, snapshot: Snapshot, loaded: Loaded, present: Callable[[str], bool], options: RemovalOptions
    ) -> None:
        self._snapshot = snapshot
        self._loaded = loaded
        self._present = present
        self._options = options
        self._entered: set[ModuleName] = set()
        self.complaints: list[str] = []

    def target(self, request: Request, hit: Hit) -> Removal:
        """Return the removal of one hit of the lookup."""
        is_alias = hit.alias is not None
        because = Reason("alias" if is_alias else "asked", request.text, hit.pattern if is_alias else "", hit.at)
        self._entered.clear()
        removal = self._removal(hit.module, because, 0, hit.builtin, self._options.holders)
        known = removal.builtin or removal.command or self._snapshot.catalog.dep(hit.module) is not None
        exists = not is_alias or bool(known) or self._loaded.state(hit.module) is not None
        return replace(removal, exists=exists)

    def _removal(
        self, name: ModuleName, because: Reason, depth: int, builtin: bool = False, with_holders: bool = False
    ) -> Removal:
        self._entered.add(name)
        config = self._snapshot.config
        command: Command | None = None
        pre: list[tuple[Hit, Softdep]] = []
        post: list[tuple[Hit, Softdep]] = []
        if not self._options.ignore_commands:
            command = self._snapshot.lines.remove(name)
            softdeps = self._snapshot.lines.softdeps(name)
            for line in softdeps if config.extensions.softdeps_add_up else softdeps[:1]:
                pre += self._hits(line, line.pre)
                post += self._hits(line, line.post)
        before = self._softdeps("softdep_post", name, post, depth)
        holders = self._holders(name, depth) if with_holders and depth < MAX_DEPTH else ()
        after = self._softdeps("softdep_pre", name, pre, depth)
        is_builtin = builtin or self._snapshot.catalog.is_builtin(name)
        return Removal(name, because, command, is_builtin, before, holders, self._deps(name), after)

    def _softdeps(
        self, kind: Cause, of: ModuleName, found: list[tuple[Hit, Softdep]], depth: int
    ) -> tuple[Removal, ...]:
        """Return the removals of softdeps, last one first, without modules that were entered before."""
        if depth >= MAX_DEPTH:
            return ()
        removals = []
        for hit, line in reversed(found):
            if hit.module not in self._entered:
                removals.append(self._removal(hit.module, Reason(kind, of, at=line.at), depth + 1, hit.builtin))
        return tuple(removals)

    def _holders(self, name: ModuleName, depth: int) -> tuple[Removal, ...]:
        module = self._loaded.modules.get(name)
        names = module.holders if module else ()
        return tuple(
            self._removal(holder, Reason("dep", name), depth + 1, with_holders=True)
            for holder in names
            if holder not in self._entered
        )

    def _hits(self, line: Softdep, names: tuple[str, ...]) -> list[tuple[Hit, Softdep]]:
        found = []
        for name in names:
            try:
                found += [(hit, line) for hit in lookup(name, self._snapshot)]
            except UnmatchedBracket:
                self.complaints.append(_NO_SOFTDEP.format(name))
        return found

    def _deps(self, name: ModuleName) -> tuple[ModuleName, ...]:
        """Return the dependencies in the order of loading; none if a file is missing, as for loading."""
        line = self._snapshot.catalog.dep(name)
        if line is None or not all(self._present(path) for path in line.deps):
            return ()
        return tuple(module_of_path(path) for path in reversed(line.deps))


# ── execution ────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Ended(Exception):
    """A failure that ends the job, as a FATAL message of modprobe does."""


@dataclass(slots=True)
class RemovalJob:
    """A removal plan in execution, the counterpart of `Job`. The next step depends on the currently loaded modules."""

    plan: RemovalPlan
    look: Callable[[], Loaded]
    """Reads the loaded modules."""
    outcomes: list[Outcome] = field(default_factory=list)
    """Outcomes so far, in order of execution."""
    progress: Progress = field(default_factory=Progress)
    begun: bool = False
    """Whether a loader was given a step."""
    failed: bool = False
    """Whether the last tried target could not be removed."""
    _walk: _Walk | None = None
    _step: RemovalStep | None = None
    """The current step."""
    _answer: Outcome | None = None
    """Outcome of the last step, to be sent to the walk."""
    _over: bool = False
    _reported: int = 0
    """Number of outcomes that `pop_outcomes` has returned."""

    def next_step(self) -> RemovalStep | None:
        """Return the next step to execute, the same one until it is finished; None at the end of the plan."""
        if self._step is not None or self._over:
            return self._step
        self._walk = self._walk or self._all()
        answer, self._answer = self._answer, None
        try:
            self._step = self._walk.send(answer)
        except StopIteration:
            self._over = True
        except _Ended:
            self._over = self.failed = True
        return self._step

    def finish(self, outcome: Outcome) -> None:
        """Record the outcome of the step that `next_step` returned."""
        self.outcomes.append(outcome)
        self._answer = outcome
        self._step = None

    def abandon(self, why: str) -> None:
        """Record the next step as not attempted, for the reason `why`, and drop the rest of the plan."""
        step = self.next_step()
        if step is not None:
            self.finish(not_attempted(self.plan.request, step, why))
        self._over = self.failed = True

    def begin(self) -> None:
        """Note that a loader has begun with a step, so that the kernel may have changed by it."""
        self.begun = True

    def pop_outcomes(self) -> list[Outcome]:
        """Take the outcomes added since the last call."""
        new = self.outcomes[self._reported :]
        self._reported = len(self.outcomes)
        return new

    def _add_outcome(self, removal: Removal, result: Result, code: int) -> int:
        """Record an outcome without a step; return `code`. Raises _Ended if a failure ends the job."""
        outcome = Outcome(self.plan.request, removal.module, result, removal.because, errno=code)
        self.outcomes.append(outcome)
        if self._options.ends_at_failure:
            raise _Ended
        return code

    @property
    def _options(self) -> RemovalOptions:
        return self.plan.request.removing or RemovalOptions()

    def _all(self) -> _Walk:
        if self.plan.bad_name:
            self.failed = True
            return errno.EINVAL
        if not self.plan.targets:
            request = self.plan.request
            self.outcomes.append(Outcome(request, request.text, "nomatch", Reason("asked", request.text)))
            self.failed = True
            return errno.ENOENT
        if not any(target.exists for target in self.plan.targets) and not self._options.ignore_loaded:
            self.failed = True
            return self._add_outcome(self.plan.targets[0], "nomatch", errno.ENOENT)
        for target in self.plan.targets:
            code = yield from self._remove(target, asked=True)
            self.failed = code != 0
            if code:
                return code
        return 0

    def _remove(self, removal: Removal, *, asked: bool) -> _Walk:
        """Remove a module and the modules that go with it (kmod rmmod_do_module)."""
        may_go = self._options.only_deps
        if may_go is not None and not asked and removal.module not in may_go:
            return 0
        if not removal.command and not self._options.ignore_loaded:
            if removal.builtin:
                return self._add_outcome(removal, "builtin", errno.ENOENT) if asked else 0
            if self.look().state(removal.module) is None:
                if self._options.first_time:
                    return self._add_outcome(removal, "absent", errno.ENOENT)
                return 0
        for softdep in removal.before:
            yield from self._remove(softdep, asked=False)
        for holder in removal.holders:
            code = yield from self._remove(holder, asked=False)
            if code:
                return code
        # A holder takes the dependencies with it that nothing else uses.
        swept = bool(removal.holders) and self.look().state(removal.module) is None
        unchecked = swept or removal.command or self._options.waits or self._options.ignore_loaded
        if not unchecked and self._refcnt(removal.module) > self._going(removal):
            return self._add_outcome(removal, "in_use", errno.EBUSY)
        code = 0 if swept else (yield from self._itself(removal))
        if code:
            return code
        if not removal.command:
            for name in removal.unneeded:
                if (may_go is None or name in may_go) and self._refcnt(name) == 0:
                    yield Rmmod(name, Reason("dep", removal.module))
        for softdep in removal.after:
            yield from self._remove(softdep, asked=False)
        return 0

    def _itself(self, removal: Removal) -> _Walk:
        """Remove the module itself, or run its remove command."""
        step: RemovalStep = Rmmod(removal.module, removal.because)
        if removal.command:
            line = removal.command
            step = RemoveCommand(removal.module, line.command, line.at, removal.because)
        outcome = yield step
        assert outcome is not None, "the step has no outcome yet"
        if outcome.result in ("removed", "absent"):
            return 0
        if isinstance(step, RemoveCommand) and self._options.ends_at_failure:
            raise _Ended
        return outcome.errno or errno.EINVAL

    def _going(self, removal: Removal) -> int:
        """Return how many holders count as removed although they are loaded: those of a dry run."""
        module = self.look().modules.get(removal.module) if self._options.holders else None
        removed = {outcome.module for outcome in self.outcomes if outcome.result == "removed"}
        return sum(holder in removed for holder in module.holders) if module else 0

    def _refcnt(self, name: str) -> int:
        """Return the reference count of a module, -1 if it is not loaded, being unloaded, or the kernel has none."""
        module = self.look().modules.get(ModuleName(name))
        return -1 if module is None or module.refcnt is None else module.refcnt
