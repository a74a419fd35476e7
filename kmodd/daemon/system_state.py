"""What the line knows of the machine: settings, indexes and configuration, and what the kernel holds. A `SystemState`.

All of it is memory of files, read again when they change: all of the new or all of the old; where the tree goes while
it is read, what there was left of it, until the next look.
"""

from __future__ import annotations

import time

from kmodd.config.kmodd_conf import Settings
from kmodd.config.modprobe_d import DROP_IN, Extensions
from kmodd.daemon.in_flight import AnyJob
from kmodd.daemon.policy_state import PolicyState
from kmodd.daemon.reporter import Reporter
from kmodd.dataclass import replace
from kmodd.errors import NoTree, Problem
from kmodd.host.config_files import read_settings, settings_marks
from kmodd.host.file_watch import Watch
from kmodd.host.tree import Mark, Tree, TreeSnapshot
from kmodd.kernel.proc_modules import Loaded
from kmodd.planning.job import Job
from kmodd.planning.plan import Plan
from kmodd.planning.record import BAD_INPUT, ERR, NO_TREE, Record
from kmodd.planning.removal import RemovalJob, plan_removal
from kmodd.planning.request import Request
from kmodd.planning.resolve import options_of, resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


_WATCH_COMES = -1
"""In place of a watch's state."""

ASK_FILES = 1.0
"""Seconds after which files are asked though the watch is quiet: it does not see a file that a link leads to."""

LOOK_AT_LOADED = 1.0
"""Seconds after which /proc/modules is read again all the same: nobody says when somebody else begins to load."""


class SystemState:
    """Reads when it is told to, or asked whether anything changed."""

    def __init__(self, tree: Tree, report: Reporter, guard: PolicyState) -> None:
        self.tree = tree
        self.guard = guard
        self._report = report
        self.settings = Settings()
        self._is_first = True
        self._settings_marks: tuple[tuple[str, Mark], ...] = ()
        self.snapshot: TreeSnapshot | None = None
        self.no_tree = ""
        """Why there is no snapshot of now; empty: there is one."""
        self.age = 0
        """Goes up when a plan that was made before may not be good any more."""
        self.watch: Watch | None = None
        """Says when a file may have changed; None: each look asks the files."""
        self.watch_comes = False
        """There will be one, and all files are asked then; until that only what matches nothing has them asked."""
        self._asked: tuple[int | None, float] = (None, 0.0)
        """How the watch stood when the files were last found unchanged, and when (time.monotonic) that was."""
        self._loaded: Loaded | None = None
        self._loaded_at = 0.0

    def reload(self) -> tuple[Sequence[Problem], bool]:
        """Read everything again. The answer: lines without use, and whether anything is different now."""
        self.age += 1
        self._settings_marks = settings_marks(self.tree.root)
        settings, problems = self._new_settings()
        broken, policy_changed = self.guard.reload(settings.policy)
        problems = (*problems, *broken)
        before = self.tree.extensions, self.tree.notice_edits
        marks = self.snapshot.marks if self.snapshot else None
        self.tree.extensions, self.tree.notice_edits = settings.extensions, settings.notice_edits
        if not self._has_tree():
            self.tree.extensions, self.tree.notice_edits = before
            return (), False
        # Let go of first: the new one is made in the same memory; both at once leave 10 MB full of holes.
        self.snapshot = None
        snapshot = self.tree.read()
        changed = bool(self.no_tree) or marks != snapshot.marks
        changed = changed or policy_changed or before != (settings.extensions, settings.notice_edits)
        self.no_tree = ""
        self.snapshot, self.settings, self._is_first = snapshot, settings, False
        problems = (*problems, *snapshot.problems)
        for problem in problems:
            self._report.complain(problem)
        self._has_tree()  # where it went meanwhile, what was read of it is no tree
        return problems, changed

    def _has_tree(self) -> bool:
        """Whether there is one now; that there is none is told once."""
        try:
            self.tree.check()
        except NoTree as error:
            if not self.no_tree:
                self._report.tell(Record(NO_TREE, ERR, str(error)))
            self.no_tree = str(error)
            return False
        return True

    def _new_settings(self) -> tuple[Settings, tuple[Problem, ...]]:
        """kmodd.conf as it is now; where it is broken and there are earlier settings, these."""
        settings = read_settings(self.tree.root)
        if settings.broken and not self._is_first:
            message = "kmodd.conf cannot be used as it is: all earlier settings stay in force"
            self._report.tell(Record(BAD_INPUT, ERR, message))
            return self.settings, settings.problems
        if settings.policy_broken or (settings.broken and self.guard.was_closed):
            # There is nothing earlier to keep, and of two mistakes this is the one that lets nothing in.
            message = "kmodd.conf is broken, so nobody knows what the policy was to be: it is enforced"
            if not self.no_tree:
                self._report.tell(Record(BAD_INPUT, ERR, message))
            return replace(settings, policy="enforce"), settings.problems
        return settings, settings.problems

    @property
    def watched(self) -> bool:
        """Somebody says when a file may have changed."""
        return self.watch is not None or self.watch_comes

    def is_current(self, *, once_more: bool = False) -> bool:
        """Nothing has changed on disk since it was read: a stat of each file, where the watch is not sure.

        `once_more`: what is answered now is asked once more if it turns out, when the watch comes, that something had,
        as devices are.
        """
        if self.snapshot is None or self.no_tree:
            return False
        # Before the files: what changes meanwhile, the next look sees.
        state, now = self.watch.state() if self.watch else None, time.monotonic()
        if self.watch_comes and once_more:
            state = _WATCH_COMES
        if state is not None and state == self._asked[0] and now < self._asked[1] + ASK_FILES:
            return True
        is_current = self._settings_marks == settings_marks(self.tree.root) and self.tree.is_current(self.snapshot)
        self._asked = (state if is_current else None, now)
        return is_current

    @property
    def extensions(self) -> Extensions:
        """What of the configuration goes beyond kmod."""
        return self.snapshot.config.extensions if self.snapshot else DROP_IN

    def loaded(self) -> Loaded:
        """What the kernel holds, as of the last look and what came since; after `forget_loaded` there is a new look."""
        if self._loaded is None:
            self._loaded, self._loaded_at = self.tree.loaded(), time.monotonic()
        return self._loaded

    def tick(self, now: float) -> None:
        """Look at the kernel's modules again if the last look is too old. `now`: time.monotonic."""
        if now > self._loaded_at + LOOK_AT_LOADED:
            self._loaded = None

    def came(self, module: str) -> None:
        """A module was loaded: no need to look for it."""
        if self._loaded is not None:
            self._loaded = self._loaded.with_live(module)

    def forget_loaded(self) -> None:
        """Something was loaded or removed, or may have been."""
        self._loaded = None

    def outdate(self) -> None:
        """A plan that was made before may lack something: a module went, or nobody knows what went."""
        self.age += 1
        self._loaded = None

    def plan(self, request: Request) -> Plan:
        """What would be done for `request` now. Raises NoTree."""
        if self.snapshot is None:
            raise NoTree(self.no_tree)
        options, judge = options_of(request.origin), self.guard.judge_of(request)
        return resolve(request, self.snapshot, self.loaded(), options, self.tree.present, judge)

    def job(self, request: Request) -> AnyJob:
        """What is to be done for `request` now, not yet begun. Raises NoTree."""
        if request.removing is None:
            return Job(self.plan(request))
        if self.snapshot is None:
            raise NoTree(self.no_tree)
        plan = plan_removal(request, self.snapshot, self.tree.loaded(), self.tree.present)
        return RemovalJob(plan, self.tree.loaded)
