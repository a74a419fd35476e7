"""Resolve a request to a plan: `Request` and `Snapshot` in, `Plan` out. No I/O.

The rules are those of kmod 34's kmod_module_probe_insert_module and its callees, including corner cases:

- The dependencies of a module are loaded from right to left of its line in modules.dep, each between its softdeps.
- Softdeps are loaded with their dependencies and may form cycles: a module is entered only once. A dependency is not
  entered, so a module can be in a plan twice.
- Only the first matching softdep line counts. If it names a module, it disables the install command.
- If the file of one dependency is missing, all dependencies are dropped, and the module is tried without them.

As in kmod, a module reached by an alias is another object than the same module reached by name: `_Key`.
"""

from __future__ import annotations

from kmodd.config.modprobe_d import Blacklist, Command, Softdep
from kmodd.dataclass import dataclass, field, replace
from kmodd.errors import UnmatchedBracket
from kmodd.index.catalog import Hit, Snapshot, lookup
from kmodd.kernel.proc_modules import NOTHING_LOADED, Loaded
from kmodd.names import ModuleName, joined_params, module_of_path
from kmodd.planning.own_lines import lines_for
from kmodd.planning.plan import Cause, Entry, Goal, Insmod, Install, Plan, Reason, Skip, Step
from kmodd.planning.refusals import refusal_of
from kmodd.planning.request import Origin, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Literal

    from kmodd.errors import Where
    from kmodd.planning.policy import PolicyDecision

    Judge = Callable[[str], PolicyDecision]
    """Returns the policy decision about a module, whether requested or needed."""
    _Steps = Iterator["_Steps"]
    """A part of the walk over dependencies and softdeps, which yields its own parts."""

__all__ = ["ProbeOptions", "Snapshot", "hits_of", "joined_params", "options_of", "resolve"]


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """Options of resolving a request."""

    blacklist: Literal["alias", "always", "never"] = "alias"
    """alias: for modules named by an alias (modprobe). always: also by name (udevd, modules-load, modprobe -b)."""
    ignore_install: bool = False
    """Ignore install command and softdeps of the requested module itself (modprobe -i)."""
    ignore_loaded: bool = False
    """Assume that no module is loaded (modprobe -D)."""
    blocked: bool = True
    """Skip what is known not to come: what an install command or `module_blacklist=` keeps out, what needs that, and
    what needs a file that is missing. kmod tries it (modprobe).
    """
    paths: bool = False
    """The request may be the path of a file; never set for requests of the kernel."""
    relative_paths: bool = False
    """That path may be relative to the working directory, which `--root` is not put before."""
    foreign: bool = False
    """Load files that are not root's alone; else they are denied."""


def options_of(origin: Origin) -> ProbeOptions:
    """Return the options for an origin: devices as udevd, the kernel as `modprobe -q`, operators as `modprobe`."""
    match origin:
        case "uevent" | "coldplug" | "reconcile" | "boot":
            return ProbeOptions(blacklist="always")
        case "request":
            return ProbeOptions()
        case "operator":
            return ProbeOptions(blocked=False, paths=True, foreign=True)


def resolve(
    request: Request,
    snapshot: Snapshot,
    loaded: Loaded,
    options: ProbeOptions,
    present: Callable[[str], bool],
    judge: Judge | None = None,
    foreign: Callable[[str], str] = lambda _: "",
) -> Plan:
    """Return the plan that loads the modules of `request`, each entry with its reason.

    The plan has no goals if nothing matches, or if the request has an unmatched bracket.
    loaded: the modules that the kernel has. present: whether the file of a dependency exists, by its path as printed.
    judge: the policy; None: all modules are allowed. foreign: why the file at a path is not root's alone, as a
    predicate; empty if it is.
    """
    planner = _Planner(snapshot, loaded, options, present, judge, foreign)
    if options.paths and request.text.startswith(("/", "./", "../") if options.relative_paths else "/"):
        return Plan(request, (planner.goal_of_file(request),))
    try:
        hits = planner.look_up(request.text)
    except UnmatchedBracket:
        hits = ()
    complaints = planner.taken_complaints()
    return Plan(request, tuple(planner.goal(request, hit) for hit in hits), complaints)


def hits_of(text: str, snapshot: Snapshot, present: Callable[[str], bool]) -> tuple[tuple[Hit, ...], tuple[str, ...]]:
    """Return the hits of a name, and the messages that kmod writes for the lookup (modprobe -R)."""
    planner = _Planner(snapshot, NOTHING_LOADED, ProbeOptions(), present)
    try:
        return planner.look_up(text), planner.taken_complaints()
    except UnmatchedBracket:
        return (), ()


def _offered(entry: Entry, offers: Mapping[str, int]) -> Entry:
    """Return a step for a file that the caller has offered with that offer, any other entry unchanged."""
    if isinstance(entry, Insmod) and entry.foreign and entry.path in offers:
        return replace(entry, offered=offers[entry.path])
    return entry


def foreign_rule(path: str, why: str) -> str:
    """Return the rule that denies a file that is not root's alone: which file, why, and what to do about it."""
    return (
        f"ForeignModules=no: {path} {why}; give root a copy of the file and run `kmodd reload`, load it with "
        "modprobe, or set ForeignModules=yes in kmodd.conf"
    )


# Messages of kmod 34
_NO_SOFTDEP = "failed to lookup dependency '{}', continuing anyway."
_NO_DEP = "ctx=0x0 path={} error={}"
_OTHER_PATH = "kmod_module '{}' already exists with different path: new-path='{}' old-path='{}'"


@dataclass(frozen=True, slots=True)
class _Key:
    """Identity of a kmod struct kmod_module: a name, and the alias by which it was reached, None for its name."""

    name: ModuleName
    alias: str | None


@dataclass(slots=True)
class _Module:
    """State of a kmod struct kmod_module while one request is resolved."""

    path: str = ""
    deps: tuple[_Key, ...] | None = None
    """None: not read yet, or dropped because a file is missing."""
    is_file: bool = False
    """Created from its file; kmod then does not check whether the module is builtin."""
    builtin: bool = False
    command: Command | None = None
    """The install line by which the lookup found the name."""


@dataclass(slots=True)
class _Draft:
    """A goal under construction (kmod_module_get_probe_list)."""

    order: list[tuple[_Key, Reason]] = field(default_factory=list)
    entered: set[_Key] = field(default_factory=set)
    required: set[_Key] = field(default_factory=set)
    commands_off: dict[_Key, bool] = field(default_factory=dict)
    """Set each time a module is added to the order; the last value counts for all its positions."""


def _blocked(entry: Entry, refused: Mapping[ModuleName, Where]) -> Skip | None:
    """Return a step as a skip if its command, or `module_blacklist=`, is known to keep the module out, else None.

    refused: the modules of `module_blacklist=`, with its place.
    """
    if isinstance(entry, Skip):
        return None
    if isinstance(entry, Install):
        refusal = refusal_of(entry.command)
        if refusal is None or not refusal.is_certain:
            return None
        rule = f"install {entry.command.strip()}"
        return Skip(entry.module, "blocked", entry.because, entry.at, rule, entry.required, passes=not refusal.status)
    at = refused.get(entry.module)
    rule = f"module_blacklist={entry.module}"
    return Skip(entry.module, "blocked", entry.because, at, rule, entry.required) if at else None


def _walk(steps: _Steps) -> None:
    """Run all parts, depth first, without recursion: chains of softdeps may exceed Python's recursion limit."""
    waiting = [steps]
    while waiting:
        part = next(waiting[-1], None)
        if part is None:
            waiting.pop()
        else:
            waiting.append(part)


class _Planner:
    """Resolver of one request."""

    def __init__(
        self,
        snapshot: Snapshot,
        loaded: Loaded,
        options: ProbeOptions,
        present: Callable[[str], bool],
        judge: Judge | None = None,
        foreign: Callable[[str], str] = lambda _: "",
    ) -> None:
        self._judge = judge
        self._foreign = foreign
        self._snapshot = snapshot
        self._lines = snapshot.lines
        self._extensions = snapshot.config.extensions
        self._loaded = loaded
        self._probe_options = options
        self._present = present
        self._modules: dict[_Key, _Module] = {}
        self._complaints: list[str] = []
        self._dropped: dict[_Key, str] = {}
        """Module whose dependencies are dropped → the missing file of one."""

    # ── goals ──

    def look_up(self, text: str) -> tuple[Hit, ...]:
        """Return the hits of a name, and register each as a module. Raises UnmatchedBracket."""
        hits = lookup(text, self._snapshot)
        for hit in hits:
            module = self._module(_Key(hit.module, hit.alias))
            module.builtin = module.builtin or hit.builtin
            module.command = hit.command or module.command
            if hit.source == "module name":
                self._read_deps(_Key(hit.module, hit.alias))
        return hits

    def goal(self, request: Request, hit: Hit) -> Goal:
        """Return the goal of one hit of the lookup."""
        kind: Cause = "alias" if hit.alias is not None else "boot" if request.origin == "boot" else "asked"
        pattern, at = (hit.pattern, hit.at) if hit.alias is not None else ("", request.at)
        return self._goal(request, _Key(hit.module, hit.alias), Reason(kind, request.text, pattern, at))

    def goal_of_file(self, request: Request) -> Goal:
        """Return the goal of a request by path (kmod 31 and later)."""
        target = _Key(module_of_path(request.text), None)
        because = Reason("asked", request.text)
        if not self._present(request.text):
            return Goal(target.name, (Skip(target.name, "missing", because),))
        self._file(request.text)
        return self._goal(request, target, because)

    def taken_complaints(self) -> tuple[str, ...]:
        """Return the complaints since the last call."""
        taken = tuple(self._complaints)
        self._complaints.clear()
        return taken

    def _goal(self, request: Request, target: _Key, because: Reason) -> Goal:
        state = "" if self._probe_options.ignore_loaded else self._in_kernel(target)
        if state:
            return Goal(target.name, (Skip(target.name, state, because),))
        lines = lines_for(self._snapshot, target.name, self._judge)
        blacklisted = lines.blacklist(target.name) if self._blacklist_holds_for(target) else None
        if blacklisted:
            return Goal(target.name, (Skip(target.name, "blacklisted", because, blacklisted.at),))
        draft = _Draft()
        _walk(self._enter(target, because, draft, is_target=True))
        params = joined_params(request.params)
        offers = dict(request.files)
        entries = tuple(
            _offered(self._entry(key, why, draft, target, params if key == target else ""), offers)
            for key, why in draft.order
        )
        entries = self._judged(entries)
        if self._probe_options.blocked:
            entries = self._without_blocked(entries, target)
        return Goal(target.name, entries, self.taken_complaints())

    def _without_blocked(self, entries: tuple[Entry, ...], target: _Key) -> tuple[Entry, ...]:
        """Return the entries with those that are known not to come as skips.

        If what the target requires, or the target itself, does not come, nothing else of the goal is of use and left.
        """
        refused = {line.module: line.at for line in self._snapshot.config.kernel_blacklist}
        blocked = {index: skip for index, entry in enumerate(entries) if (skip := _blocked(entry, refused))}
        culprits = [skip for skip in blocked.values() if skip.module == target.name or skip.required]
        own = [skip for skip in culprits if skip.module == target.name]
        is_tried = any(isinstance(entry, Insmod) and entry.module == target.name for entry in entries)
        if is_tried and not own and (missing := self._missing_dependency(target)):
            culprits.append(missing)
        if not culprits:
            return tuple(blocked.get(index, entry) for index, entry in enumerate(entries))
        of, why = culprits[0].module, culprits[0].reason
        return tuple(own) or tuple(culprits) + tuple(
            entry if isinstance(entry, Skip) else Skip(entry.module, "depends", entry.because, rule=why, of=of)
            for entry in entries
            if entry.module == target.name
        )

    def _missing_dependency(self, target: _Key) -> Skip | None:
        """Return the dependency of the target whose file is missing, for which kmod drops all of them; None: there is
        none, or the kernel has all modules that the target needs.
        """
        path = self._dropped.get(target)
        line = self._snapshot.catalog.dep(target.name)
        if not path or line is None or all(self._in_kernel(_Key(module_of_path(dep), None)) for dep in line.deps):
            return None
        name = module_of_path(path)
        return Skip(name, "missing", Reason("dep", target.name), path=path)

    def _judged(self, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        """Return the entries with those that are denied as skips; if a required one is denied, all steps are."""
        refused: dict[str, tuple[str, Where | None]] = {
            entry.module: refusal
            for entry in entries
            if not isinstance(entry, Skip) and (refusal := self._refusal(entry))
        }
        if not refused:
            return entries
        needed = next((entry.module for entry in entries if entry.required and entry.module in refused), None)
        left: list[Entry] = []
        for entry in entries:
            culprit = entry.module if entry.module in refused else needed
            if isinstance(entry, Skip) or culprit is None:
                left.append(entry)
                continue
            text, at = refused[culprit]
            rule = text if culprit == entry.module else f"{text} (for {culprit})"
            of = "" if culprit == entry.module else culprit
            left.append(Skip(entry.module, "denied", entry.because, at, rule, entry.required, of))
        return tuple(left)

    def _refusal(self, step: Step) -> tuple[str, Where | None] | None:
        """Return the rule that denies a step, and its line; None: nothing denies it."""
        decision = self._judge(step.module) if self._judge else None
        if decision and decision.refused:
            return decision.text, decision.at
        if isinstance(step, Insmod) and step.foreign and not self._probe_options.foreign:
            return foreign_rule(step.path, step.foreign), None
        return None

    # ── order (__kmod_module_get_probe_list, __kmod_module_fill_softdep) ──

    def _enter(self, key: _Key, because: Reason, draft: _Draft, is_target: bool = False) -> _Steps:
        """Add a module to the order after its dependencies, unless it was entered before."""
        if key in draft.entered:
            return
        draft.entered.add(key)
        deps = self._deps(key)
        if is_target:
            draft.required.update((key, *deps))
        for dep in deps:
            yield self._with_softdeps(dep, Reason("dep", key.name), draft)
        if is_target and self._probe_options.ignore_install:
            draft.order.append((key, because))
            draft.commands_off[key] = True
        else:
            yield self._with_softdeps(key, because, draft)

    def _with_softdeps(self, key: _Key, because: Reason, draft: _Draft) -> _Steps:
        """Add a module to the order between its softdeps."""
        softdeps = lines_for(self._snapshot, key.name, self._judge).softdeps(key.name)
        if not self._extensions.softdeps_add_up:
            del softdeps[1:]
        pre = [found for line in softdeps for found in self._softdep_hits(line, line.pre)]
        post = [found for line in softdeps for found in self._softdep_hits(line, line.post)]
        for found, line in pre:
            yield self._enter(found, Reason("softdep_pre", key.name, at=line.at), draft)
        draft.order.append((key, because))
        draft.commands_off[key] = bool(pre or post) and not self._extensions.softdep_keeps_install
        for found, line in post:
            yield self._enter(found, Reason("softdep_post", key.name, at=line.at), draft)

    def _softdep_hits(self, line: Softdep, names: tuple[str, ...]) -> list[tuple[_Key, Softdep]]:
        """Return the modules that a softdep line names; names without a match are ignored."""
        found = []
        for name in names:
            try:
                found += [(_Key(hit.module, hit.alias), line) for hit in self.look_up(name)]
            except UnmatchedBracket:
                self._complaints.append(_NO_SOFTDEP.format(name))
        return found

    # ── entries ──

    def _entry(self, key: _Key, because: Reason, draft: _Draft, target: _Key, params: str) -> Entry:
        """Return an element of the order as a step, or as a skip."""
        required = key in draft.required
        state = "" if self._probe_options.ignore_loaded else self._in_kernel(key)
        if state:
            return Skip(key.name, state, because, required=required)
        if self._extensions.blacklist_dependencies and (blacklisted := self._held_back(key, target)):
            return Skip(key.name, "blacklisted", because, blacklisted.at, required=required)
        command = None if draft.commands_off[key] else self._command(key)
        options = self._options(key)
        text = f"{options} {params}" if options else params
        if command:
            return Install(key.name, command.command, text, command.at, because, required, key.alias or "")
        path = self._path(key)
        if path:
            return Insmod(key.name, path, text, because, required, self._foreign(path))
        if self._is_builtin(key):
            return Skip(key.name, "builtin", because, required=required)
        return Skip(key.name, "missing", because, required=required)

    def _command(self, key: _Key) -> Command | None:
        """Return the install command: the line by which the lookup found the name, else the first that matches."""
        preset = self._module(key).command
        return preset or lines_for(self._snapshot, key.name, self._judge).install(key.name)

    def _options(self, key: _Key) -> str:
        """Return all options for the name, or for the alias by which the module was reached, joined with blanks."""
        return " ".join([line.text for line in self._lines.options(key.name, key.alias) if line.text])

    def _blacklist_holds_for(self, key: _Key) -> bool:
        match self._probe_options.blacklist:
            case "always":
                return True
            case "alias":
                return key.alias is not None
            case "never":
                return False

    def _held_back(self, key: _Key, target: _Key) -> Blacklist | None:
        """Return the line that blacklists a module or one of its dependencies, beyond kmod's rules.

        The target itself is exempt, as its blacklist was checked before.
        """
        if self._probe_options.blacklist == "never":
            return None
        names = [dep.name for dep in self._deps(key) if not self._in_kernel(dep)]
        if key != target:
            names.append(key.name)
        each = (lines_for(self._snapshot, name, self._judge).blacklist(name) for name in names)
        return next(filter(None, each), None)

    # ── state of a module ──

    def _module(self, key: _Key) -> _Module:
        module = self._modules.get(key)
        if module is None:
            module = self._modules[key] = _Module()
        return module

    def _in_kernel(self, key: _Key) -> Literal["builtin", "live", ""]:
        """Return why a module needs no load. States coming and going do not count: the kernel makes the load wait."""
        if self._is_builtin(key):
            return "builtin"
        return "live" if self._loaded.state(key.name) == "live" else ""

    def _is_builtin(self, key: _Key) -> bool:
        module = self._module(key)
        return not module.is_file and (module.builtin or self._snapshot.catalog.is_builtin(key.name))

    def _path(self, key: _Key) -> str:
        module = self._module(key)
        if not module.path and module.deps is None:
            self._read_deps(key)
        return module.path

    def _deps(self, key: _Key) -> tuple[_Key, ...]:
        """Return the dependencies of a module in the order of loading."""
        module = self._module(key)
        if module.deps is None:
            self._read_deps(key)
        return module.deps or ()

    def _read_deps(self, key: _Key) -> None:
        """Read path and dependencies from modules.dep (kmod_module_parse_depline)."""
        module = self._module(key)
        line = self._snapshot.catalog.dep(key.name) if module.deps is None else None
        if line is None:
            return
        module.path = module.path or line.path
        deps = []
        for path in line.deps:
            error = ""
            if not self._present(path):
                error = "No such file or directory"
                self._dropped[key] = path
            if not error and not self._file(path):
                error = "File exists"
            if error:
                self._complaints.append(_NO_DEP.format(path, error))
                return
            deps.append(_Key(module_of_path(path), None))
        module.deps = tuple(reversed(deps))

    def _file(self, path: str) -> bool:
        """Register a module by its file; return False if the name has another file (kmod_module_new_from_path)."""
        name = module_of_path(path)
        module = self._module(_Key(name, None))
        if module.path and module.path != path:
            self._complaints.append(_OTHER_PATH.format(name, path, module.path))
            return False
        module.path = path
        module.is_file = True
        module.builtin = False
        return True
