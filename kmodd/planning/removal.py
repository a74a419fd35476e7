"""Taking a module out: `Request` and `Snapshot` in, `RemovalPlan` out, and the `RemovalJob` on its way.

The rules are those of kmod 30's `modprobe -r` (kmod tools/modprobe.c), corners included:

- a module that the kernel does not have is out already, unless a remove command stands for it;
- first go the modules of its post-softdeps, last one first; then, where asked for, those that hold it; then it itself,
  if nothing uses it; then whatever of its dependencies nobody uses any more; last the modules of its pre-softdeps;
- softdeps and dependencies may stay: only the module itself and its holders count;
- dependencies are looked at once, in the order in which they were loaded, so one that only another of them uses stays.

The plan says what is meant to go, and why. Whether it can go is decided at its turn, by what the kernel has then,
because every removal changes that: the job asks for /proc/modules before each step.
"""

from __future__ import annotations

import errno

from kmodd.config.modprobe_d import Command, Softdep
from kmodd.dataclass import dataclass, field
from kmodd.errors import UnmatchedBracket
from kmodd.index.catalog import Hit, Snapshot, lookup
from kmodd.kernel.proc_modules import Loaded
from kmodd.names import ModuleName, module_of_path
from kmodd.planning.outcome import Outcome, Result, not_attempted
from kmodd.planning.plan import Cause, Reason, RemovalStep, RemoveCommand, Rmmod
from kmodd.planning.request import RemovalOptions, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    _Walk = Generator[RemovalStep, Outcome | None, int]
    """Gives the steps, is sent what came of each; its value is an errno, 0 for done."""

MAX_DEPTH = 200
"""Softdeps of softdeps that are followed; more than that is a mistake, and kmod would crash."""

_NO_SOFTDEP = (
    "../libkmod/libkmod-module.c:1567 lookup_softdep() failed to lookup soft dependency '{}', continuing anyway."
)


@dataclass(frozen=True, slots=True)
class Removal:
    """One module that is to go, and what goes with it."""

    module: ModuleName
    because: Reason
    command: Command | None = None
    builtin: bool = False
    before: tuple[Removal, ...] = ()
    """Its post-softdeps, in the order of removal. They may fail."""
    holders: tuple[Removal, ...] = ()
    """Modules that use it and are to go too. They may not fail."""
    unneeded: tuple[ModuleName, ...] = ()
    """Its dependencies: each goes if nothing uses it any more."""
    after: tuple[Removal, ...] = ()
    """Its pre-softdeps, likewise."""


@dataclass(frozen=True, slots=True)
class RemovalPlan:
    """What one request to remove means. No targets: nothing matched."""

    request: Request
    targets: tuple[Removal, ...]
    complaints: tuple[str, ...] = ()
    """What kmod writes to standard error meanwhile, at level ERROR, without that word."""
    bad_name: bool = False
    """The name has an unmatched bracket: kmod fails without a word."""


def plan_removal(request: Request, snapshot: Snapshot, loaded: Loaded, present: Callable[[str], bool]) -> RemovalPlan:
    """What is to go so that `request` is met. `request.removing` says how; `present`: whether a file is there."""
    planner = _Planner(snapshot, loaded, present, request.removing or RemovalOptions())
    try:
        hits = lookup(request.text, snapshot)
    except UnmatchedBracket:
        return RemovalPlan(request, (), bad_name=True)
    targets = tuple(planner.target(request, hit) for hit in hits)
    return RemovalPlan(request, targets, tuple(planner.complaints))


class _Planner:
    """Plans one request."""

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
        """One hit of the look-up."""
        is_alias = hit.alias is not None
        because = Reason("alias" if is_alias else "asked", request.text, hit.pattern if is_alias else "", hit.at)
        self._entered.clear()
        return self._removal(hit.module, because, 0, hit.builtin)

    def _removal(self, name: ModuleName, because: Reason, depth: int, builtin: bool = False) -> Removal:
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
        holders = self._holders(name, depth) if self._options.holders and depth == 0 else ()
        after = self._softdeps("softdep_pre", name, pre, depth)
        is_builtin = builtin or self._snapshot.catalog.is_builtin(name)
        return Removal(name, because, command, is_builtin, before, holders, self._deps(name), after)

    def _softdeps(
        self, kind: Cause, of: ModuleName, found: list[tuple[Hit, Softdep]], depth: int
    ) -> tuple[Removal, ...]:
        """Softdeps, last one first; whoever was entered once is not entered again."""
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
            self._removal(holder, Reason("dep", name), depth + 1) for holder in names if holder not in self._entered
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
        """What was loaded for it, in that order; nothing where a file is missing, as with loading."""
        line = self._snapshot.catalog.dep(name)
        if line is None or not all(self._present(path) for path in line.deps):
            return ()
        return tuple(module_of_path(path) for path in reversed(line.deps))


# ── on its way ───────────────────────────────────────────────────────────────────────────────────────────────────────


class _Ended(Exception):
    """A failure that ends everything, as a FATAL message of modprobe does."""


@dataclass(slots=True)
class RemovalJob:
    """A plan under way: which step is next, by what the kernel has at that moment. The like of `Job`."""

    plan: RemovalPlan
    look: Callable[[], Loaded]
    """What the kernel has now."""
    outcomes: list[Outcome] = field(default_factory=list)
    begun: bool = False
    """Something of it was given to a loader."""
    failed: bool = False
    """The last target that was tried could not go."""
    _walk: _Walk | None = None
    _step: RemovalStep | None = None
    """The one that is under way."""
    _answer: Outcome | None = None
    _over: bool = False
    _told: int = 0

    def next_step(self) -> RemovalStep | None:
        """The step to do now, the same one until it is finished; None: the plan is through."""
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
        """The step that `next_step` gave has come out like this."""
        self.outcomes.append(outcome)
        self._answer = outcome
        self._step = None

    def abandon(self, why: str) -> None:
        """Nothing more can be tried: the next step is an outcome that says so, what hangs on it is dropped."""
        step = self.next_step()
        if step is not None:
            self.finish(not_attempted(self.plan.request, step, why))
        self._over = self.failed = True

    def untold(self) -> list[Outcome]:
        """The outcomes that came since this was asked last."""
        new = self.outcomes[self._told :]
        self._told = len(self.outcomes)
        return new

    def _say(self, removal: Removal, result: Result, code: int) -> int:
        """An outcome without a step."""
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
        for target in self.plan.targets:
            code = yield from self._remove(target, asked=True)
            self.failed = code != 0
            if code:
                return code
        return 0

    def _remove(self, removal: Removal, *, asked: bool) -> _Walk:
        """One module and what goes with it (rmmod_do_module)."""
        may_go = self._options.only_deps
        if may_go is not None and not asked and removal.module not in may_go:
            return 0
        if not removal.command and not self._options.ignore_loaded:
            if removal.builtin:
                return self._say(removal, "builtin", errno.ENOENT) if asked else 0
            if self.look().state(removal.module) is None:
                if self._options.first_time:
                    return self._say(removal, "absent", errno.ENOENT)
                return 0
        for softdep in removal.before:
            yield from self._remove(softdep, asked=False)
        for holder in removal.holders:
            code = yield from self._remove(holder, asked=False)
            if code:
                return code
        unchecked = removal.command or self._options.waits or self._options.ignore_loaded
        if not unchecked and self._refcnt(removal.module) > 0:
            return self._say(removal, "in_use", errno.EBUSY)
        code = yield from self._itself(removal)
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
        """The module itself."""
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

    def _refcnt(self, name: str) -> int:
        """How much uses it; -1 where the kernel does not have it or cannot tell."""
        module = self.look().modules.get(ModuleName(name))
        return module.refcnt if module else -1
