"""What the engine knows of the machine: settings, indexes, configuration and loaded modules. A `SystemState`.

All of it is a cache of files, replaced as a whole when they change. Where the module tree disappears while it is read,
what was left of it counts until the next look.
"""

from __future__ import annotations

from kmodd.config.kmodd_conf import Settings
from kmodd.config.modprobe_d import DROP_IN, Extensions, files_of, without
from kmodd.dataclass import replace
from kmodd.engine.events import AnyJob
from kmodd.engine.machine import Machine
from kmodd.engine.policy_state import PolicyState
from kmodd.engine.reporter import Reporter
from kmodd.errors import NoTree, Problem
from kmodd.index.catalog import Mark, Snapshot, lookup_or_nothing
from kmodd.kernel.proc_modules import Loaded
from kmodd.planning.job import Job
from kmodd.planning.plan import Plan, Skip
from kmodd.planning.record import BAD_INPUT, ERR, NO_TREE, Record
from kmodd.planning.removal import RemovalJob, plan_removal
from kmodd.planning.request import Request
from kmodd.planning.resolve import options_of, resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kmodd.names import ModuleName

_WATCH_EXPECTED = -1
"""In place of a watch's state."""

CHECK_FILES_AFTER = 1.0
"""Seconds after which files are checked though the watch is quiet: it does not see the target of a symbolic link."""

LOADED_LIMIT = 1.0
"""Seconds after which /proc/modules is read again: no event tells that another process begins to load."""


def _decisive(settings: Settings) -> tuple[object, ...]:
    """The settings on which the answers to devices rest."""
    return settings.extensions, settings.notice_edits, settings.foreign_modules


def _without_rules(plan: Plan) -> Plan:
    """A plan that does not say which rule denies a module."""
    goals = tuple(
        replace(goal, entries=tuple(
            replace(entry, rule="", at=None) if isinstance(entry, Skip) and entry.reason == "denied" else entry
            for entry in goal.entries
        ))
        for goal in plan.goals
    )  # fmt: skip
    return replace(plan, goals=goals)


class SystemState:
    """Reads files when it is asked to, or asked whether they changed."""

    def __init__(self, machine: Machine, reporter: Reporter, policy: PolicyState) -> None:
        self.machine = machine
        self.policy = policy
        self._reporter = reporter
        self.settings = Settings()
        self._is_first = True
        self.broken = ""
        """The first mistake in kmodd.conf and what applies instead; empty: there is none that matters."""
        self._settings_marks: tuple[tuple[str, Mark], ...] = ()
        self.snapshot: Snapshot | None = None
        self.no_tree = ""
        """Why there is no current snapshot; empty: there is one."""
        self.is_whole = True
        """No index is left to `read_indexes`."""
        self.generation = 0
        """Grows when a plan that has not begun may be out of date."""
        self.index_age = 0
        """Grows when indexes or configuration have changed."""
        self.watch_expected = False
        """Files will be watched, and all are checked then; until then only a request without a match checks them."""
        self._checked: tuple[int | None, float] = (None, 0.0)
        """State of the watch when the files were last found unchanged, and when that was (monotonic, seconds)."""
        self._public: tuple[Snapshot, frozenset[str], Snapshot] | None = None
        """A snapshot, files, and that snapshot without what comes from these."""
        self._loaded: Loaded | None = None
        self._loaded_at = 0.0
        self._now = 0.0

    # -- files -------------------------------------------------------------------------------------------------

    def reload(self, *, whole: bool = True) -> tuple[Sequence[Problem], bool]:
        """Read the configuration again, and the indexes that have changed.

        `whole`: False leaves the indexes to `read_indexes`, or to the first look-up in each. Returns the lines that
        could not be used, and whether anything is different now.
        """
        self.generation += 1
        self._settings_marks = self.machine.settings_marks()
        settings, problems = self._read_settings()
        broken, policy_changed = self.policy.reload(settings.policy)
        problems = (*problems, *broken)
        if not self._has_tree():
            return (), False
        before = _decisive(self.settings)
        marks = self.snapshot.marks if self.snapshot else None
        # Dropped first, so that the new one uses its memory: both at once leave 10 MB full of holes.
        self.snapshot = self._public = None
        snapshot = self.machine.read_tree(settings.extensions, settings.notice_edits, whole=whole)
        changed = bool(self.no_tree) or marks != snapshot.marks
        changed = changed or policy_changed or before != _decisive(settings)
        self.index_age += changed
        self.no_tree = ""
        self.snapshot, self.settings, self._is_first, self.is_whole = snapshot, settings, False, whole
        problems = (*problems, *snapshot.problems)
        for problem in problems:
            self._reporter.log_problem(problem)
        self._has_tree()  # it may have disappeared while it was read
        return problems, changed

    def read_indexes(self) -> bool:
        """Read the indexes that `reload` has left, and write which lines of theirs could not be used.

        Returns False where a file was replaced since, or there is no tree: everything is to be read again, and nothing
        is written.
        """
        if self.is_whole:
            return True
        self.is_whole = True
        if self.snapshot is None:
            return False
        self.snapshot.catalog.load()
        if not self.machine.is_current(self.snapshot):
            return False
        for problem in self.snapshot.catalog.problems:
            self._reporter.log_problem(problem)
        return True

    def _has_tree(self) -> bool:
        """Whether there is a module tree now; that there is none is logged once."""
        try:
            self.machine.check_tree()
        except NoTree as error:
            if not self.no_tree:
                self._reporter.log(Record(NO_TREE, ERR, str(error)))
            self.no_tree = str(error)
            return False
        return True

    def _read_settings(self) -> tuple[Settings, tuple[Problem, ...]]:
        """Read kmodd.conf; where it is invalid and there are earlier settings, keep those."""
        settings = self.machine.settings()
        self.broken = ""
        if settings.broken and not self._is_first:
            message = "kmodd.conf is invalid; keeping all earlier settings"
            self._reporter.log(Record(BAD_INPUT, ERR, message))
            self.broken = f"{settings.problems[0]}; until this is corrected, all earlier settings apply"
            return self.settings, settings.problems
        if settings.policy_broken or (settings.broken and self.policy.was_closed):
            # Without earlier settings, this is the mistake that lets nothing in.
            message = "kmodd.conf is invalid; enforcing the policy as a safe default"
            if not self.no_tree:
                self._reporter.log(Record(BAD_INPUT, ERR, message))
            self.broken = f"{settings.problems[0]}; until this is corrected, the policy is enforced"
            return replace(settings, policy="enforce"), settings.problems
        return settings, settings.problems

    def expect_watch(self) -> None:
        """Files will be watched soon."""
        self.watch_expected = True

    def watch_opened(self) -> None:
        """Files are watched from now on, or never will be."""
        self.watch_expected = False

    @property
    def is_watched(self) -> bool:
        """Whether changes of files are reported, or will be."""
        return self.watch_expected or self.machine.is_watched

    def check_current(self, *, asks_again: bool = False) -> bool:
        """Check whether nothing has changed on disk since it was read: a stat of each file where the watch cannot tell.

        `asks_again`: the request is resolved again when the watch opens and files turn out to have changed, as those
        of devices are.
        """
        if self.snapshot is None or self.no_tree:
            return False
        # Before the files: the next check sees what changes meanwhile.
        state = self.machine.watch_state()
        if self.watch_expected and asks_again:
            state = _WATCH_EXPECTED
        if state is not None and state == self._checked[0] and self._now < self._checked[1] + CHECK_FILES_AFTER:
            return True
        is_current = self._settings_marks == self.machine.settings_marks() and self.machine.is_current(self.snapshot)
        self._checked = (state if is_current else None, self._now)
        return is_current

    @property
    def extensions(self) -> Extensions:
        """The extensions to modprobe.d that are on."""
        return self.snapshot.config.extensions if self.snapshot else DROP_IN

    # -- loaded modules ----------------------------------------------------------------------------------------

    def loaded(self) -> Loaded:
        """The modules in the kernel, as read last and as reported since."""
        if self._loaded is None:
            self._loaded, self._loaded_at = self.machine.loaded(), self._now
        return self._loaded

    def set_time(self, now: float) -> None:
        """The time of the current event (monotonic, seconds). An old list of modules is dropped."""
        self._now = now
        if now > self._loaded_at + LOADED_LIMIT:
            self._loaded = None

    def mark_loaded(self, module: str) -> None:
        """A module was loaded."""
        if self._loaded is not None:
            self._loaded = self._loaded.with_live(module)

    def drop_loaded(self) -> None:
        """Modules may have been loaded or removed."""
        self._loaded = None

    def drop_plans(self) -> None:
        """Earlier plans may lack a step: modules were removed, or rules changed."""
        self.generation += 1
        self._loaded = None

    # -- plans -------------------------------------------------------------------------------------------------

    def plan(self, request: Request) -> Plan:
        """The plan for `request` now. Raises NoTree."""
        if self.snapshot is None:
            raise NoTree(self.no_tree)
        options, judge = options_of(request.origin), self.policy.judge_of(request)
        if self.settings.foreign_modules:
            options = replace(options, foreign=True)
        machine = self.machine
        return resolve(request, self.snapshot, self.loaded(), options, machine.present, judge, machine.foreign)

    def config_files(self) -> frozenset[str]:
        """The files that the configuration comes from. Raises NoTree."""
        if self.snapshot is None:
            raise NoTree(self.no_tree)
        return files_of(self.snapshot.config)

    def explain(self, text: str, secret: frozenset[str], limit: int, *, with_rules: bool) -> Plan:
        """The plan for a name as `kmodd explain` has it. Raises NoTree; ValueError: more than `limit` modules match.

        secret: files that count as unreadable. with_rules: whether the plan says which rules of policy.d deny.
        """
        if self.snapshot is None:
            raise NoTree(self.no_tree)
        snapshot = self._public_snapshot(self.snapshot, secret)
        if len(lookup_or_nothing(text, snapshot)) > limit:
            raise ValueError(text)
        request = Request(text, "operator")
        options = replace(options_of("operator"), blocked=True)
        judge, machine = self.policy.judge_of(request), self.machine
        plan = resolve(request, snapshot, self.loaded(), options, machine.present, judge, machine.foreign)
        return plan if with_rules else _without_rules(plan)

    def look_up(self, names: Sequence[str], secret: frozenset[str]) -> tuple[list[list[ModuleName]], list[ModuleName]]:
        """The modules that match each name, as `kmodd lookup` has them, and those of them that are built in.

        secret: files that count as unreadable. Raises NoTree, also if the tree has gone since it was read.
        """
        if self.snapshot is None or self.no_tree:
            raise NoTree(self.no_tree)
        snapshot = self._public_snapshot(self.snapshot, secret)
        matched = [lookup_or_nothing(name, snapshot) for name in names]
        is_builtin = snapshot.catalog.is_builtin
        builtin = {hit.module for hits in matched for hit in hits if hit.builtin or is_builtin(hit.module)}
        return [list(dict.fromkeys(hit.module for hit in hits)) for hits in matched], sorted(builtin)

    def _public_snapshot(self, snapshot: Snapshot, secret: frozenset[str]) -> Snapshot:
        """The snapshot without what comes from secret files; made once for each set of them."""
        if not secret:
            return snapshot
        if self._public is None or self._public[0] is not snapshot or self._public[1] != secret:
            self._public = snapshot, secret, Snapshot(snapshot.catalog, without(snapshot.config, secret))
        return self._public[2]

    def job(self, request: Request) -> AnyJob:
        """The job of `request` now, not begun. Raises NoTree."""
        if request.removing is None:
            return Job(self.plan(request))
        if self.snapshot is None:
            raise NoTree(self.no_tree)
        plan = plan_removal(request, self.snapshot, self.machine.loaded(), self.machine.present)
        return RemovalJob(plan, self.machine.loaded)
