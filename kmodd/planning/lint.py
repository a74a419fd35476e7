"""Find mistakes in the configuration: a `Setup` in, `Finding`s out.

A line that has no effect, or another one than it states, is an error. In a file as its package has it, it is a
warning: packages are made for many kernels, and the administrator does not edit them. docs/LINT.md lists all findings.
"""

from __future__ import annotations

import re
from itertools import chain

from kmodd.config import cmdline, modprobe_d
from kmodd.config.modprobe_d import Command, Softdep
from kmodd.config.modules_load_d import BootList
from kmodd.dataclass import dataclass, replace
from kmodd.errors import Problem, Where
from kmodd.index import fnmatch
from kmodd.index.catalog import Snapshot, lookup_or_nothing
from kmodd.kernel.proc_modules import NOTHING_LOADED
from kmodd.names import ModuleName, module_of_path
from kmodd.planning.findings import Finding, error, of_problem, warning
from kmodd.planning.lint_boot import check_boot_list, check_kernel_blacklist, no_name
from kmodd.planning.lint_commands import check_endless
from kmodd.planning.lint_options import check_options
from kmodd.planning.request import Request
from kmodd.planning.resolve import ProbeOptions, resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from kmodd.planning.lint_options import Parameters

_PACKAGED = ("/usr/lib/", "/lib/")
_SHOWN = 3
"""Maximum number of names in a finding, where there may be hundreds."""
_PROGRAM = re.compile(r"(?:^|[;&|({!]|\b(?:then|else|do|if|while|exec)\b)\s*(/[\w./+-]+)(?=[\s;&|)}]|$)")
"""A program of a shell command that is named by its path."""
_GUARD = re.compile(r"(?:\s-[efsx]|\bcommand -v|\bwhich|\btype)\s+[\"']?(/[\w./+-]+)")
"""A program that the command looks for, as in `[ -x /sbin/x ] && /sbin/x`: without it, another part is run."""
_EVERYWHERE = frozenset(
    f"{folder}/{name}" for folder in ("/bin", "/sbin", "/usr/bin", "/usr/sbin")
    for name in ("modprobe", "insmod", "rmmod", "true", "false", "sh", "echo", "test", "sleep", "logger")
)  # fmt: skip
"""Programs of every system, also if another root is checked that has only its module tree."""
_OFF = ("off", "null")
"""Targets of an alias that is meant to lead to no module."""


def _unknown(_path: str) -> None:
    """The parameters of no module are known."""


_FOREIGN = (
    "not loaded for devices, at boot and for the kernel's requests: it {}; give root a copy of the file, "
    "or set ForeignModules=yes in kmodd.conf"
)


@dataclass(frozen=True, slots=True)
class Setup:
    """The configuration to check."""

    snapshot: Snapshot
    boot: BootList = BootList()
    files: tuple[Finding, ...] = ()
    """Findings about files that are not read."""
    problems: tuple[Problem, ...] = ()
    """Problems of kmodd.conf, policy.d and depmod.d."""
    parameters: Parameters = _unknown
    foreign: Callable[[str], str] = lambda _: ""
    """Returns why the module file at a path is not root's alone, as a predicate; empty for files that are loaded."""
    present: Callable[[str], bool] = lambda _: True
    """Returns whether a program or module file exists."""
    shipped: Callable[[], frozenset[str]] = frozenset
    """Returns the files in /etc that are as their package has them; called if there is a finding in /etc."""


def lint(setup: Setup) -> tuple[Finding, ...]:
    """Return all findings, sorted by file and line."""
    snapshot = setup.snapshot
    found = [*setup.files, *map(of_problem, setup.problems)]
    found += chain.from_iterable(check(snapshot) for check in CHECKS)
    found += check_options(snapshot, setup.parameters)
    found += check_boot_list(snapshot, setup.boot)
    found += _blacklists(snapshot, setup.present)
    found += _missing_programs(snapshot, setup.present)
    found += _foreign(setup)
    shipped = setup.shipped() if any(finding.at.file.startswith("/etc/") for finding in found) else frozenset()
    marked = (_marked(finding, shipped) for finding in found)
    return tuple(sorted(marked, key=lambda finding: (finding.at.file, finding.at.line)))


def _marked(finding: Finding, shipped: frozenset[str]) -> Finding:
    """Return a finding in a file as its package has it as a warning, any other unchanged."""
    if finding.code != "foreign" and (finding.at.file in shipped or _is_packaged(finding.at)):
        return replace(finding, severity="warning", shipped=True)
    return finding


def shadowed(
    places: Sequence[tuple[str, Iterable[str]] | str], suffixes: tuple[str, ...] = modprobe_d.SUFFIXES
) -> tuple[tuple[str, str], ...]:
    """Return each file that is not read because another has the same name, with that other file.

    places, suffixes: as for `modprobe_d.ordered`.
    """
    each: list[tuple[str, Iterable[str]] | str] = []
    for place in places:
        each += [place] if isinstance(place, str) else [(place[0], [name]) for name in place[1]]
    taken = {path.rpartition("/")[2]: path for path in modprobe_d.ordered(each, suffixes)}
    all_paths = chain.from_iterable(modprobe_d.ordered([place], suffixes) for place in each)
    return tuple((path, by) for path in all_paths if (by := taken[path.rpartition("/")[2]]) != path)


# ── helpers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _is_packaged(at: Where) -> bool:
    return at.file.startswith(_PACKAGED)


def _is_literal(pattern: str) -> bool:
    return not any(character in pattern for character in "*?[\\")


def _covers(pattern: str, other: str) -> bool:
    """Return whether `pattern` is known to match all that `other` matches: it is equal, or matches a literal."""
    return pattern == other or (_is_literal(other) and fnmatch.matches(pattern, other))


def _several(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _resolves(names: Iterable[str], snapshot: Snapshot) -> bool:
    return any(lookup_or_nothing(name, snapshot) for name in names)


def _foreign(setup: Setup) -> Iterator[Finding]:
    """Find module files that are not root's alone, which devices do not get."""
    catalog = setup.snapshot.catalog
    for path in [line.path for name in catalog.names() if (line := catalog.dep(name))]:
        if why := setup.foreign(path):
            yield warning(Where(path, 0), "foreign", _FOREIGN.format(why))


# ── checks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _bad_lines(snapshot: Snapshot) -> Iterator[Finding]:
    """Find lines that do not parse, parts of lines that are ignored, and lines that end in CR LF."""
    config = snapshot.config
    yield from map(of_problem, (*config.problems, *config.remarks))
    ends: list[tuple[str, Where]] = []
    ends += [(alias.module, alias.at) for alias in config.aliases]
    ends += [(entry.module, entry.at) for entry in config.blacklist]
    ends += [(options.text, options.at) for options in config.options]
    ends += [(softdep.text, softdep.at) for softdep in config.softdeps]
    ends += [(command.command, command.at) for command in (*config.installs, *config.removes)]
    for text, at in ends:
        if text.endswith("\r"):
            yield error(at, "cr-lf", "line ends in CR LF; the CR is part of the last word")


def _aliases(snapshot: Snapshot) -> Iterator[Finding]:
    """Find aliases for modules that do not exist or are blacklisted, and aliases that hide a module.

    `alias X off` is an idiom: a request for X finds nothing, also not in modules.alias.
    """
    blacklisted = {entry.module: entry.at for entry in snapshot.config.blacklist}
    commands = {command.pattern for command in snapshot.config.installs}
    for alias in snapshot.config.aliases:
        target = alias.module
        if target in _OFF:
            continue
        if not snapshot.catalog.has(target) and target not in commands:
            if lookup_or_nothing(target, snapshot):
                yield error(alias.at, "alias", f"{target} is itself an alias: an alias of an alias is not resolved")
            else:
                text = f"alias {alias.pattern} has no effect: no such module {target}"
                yield error(alias.at, "unknown-module", text)
        elif target in blacklisted:
            text = f"alias {alias.pattern} is ignored: {target} is blacklisted at {blacklisted[target]}"
            yield warning(alias.at, "blacklist", text)
        if alias.pattern != target and snapshot.catalog.dep(alias.pattern):
            yield warning(alias.at, "alias", f"alias hides the module {alias.pattern} from requests by name")


def _overridden(snapshot: Snapshot) -> Iterator[Finding]:
    """Find softdep, install and remove lines that an earlier line overrides: kmod uses only the first for a module."""
    config = snapshot.config
    softdeps = () if config.extensions.softdeps_add_up else config.softdeps
    kinds: tuple[tuple[str, Sequence[Softdep | Command]], ...] = (
        ("softdep", softdeps),
        ("install", config.installs),
        ("remove", config.removes),
    )
    for kind, entries in kinds:
        lost: dict[tuple[str, str, Where], list[Where]] = {}
        for index, entry in enumerate(entries):
            first = next((each for each in entries[:index] if _covers(each.pattern, entry.pattern)), None)
            if first is not None and not _says_the_same(first, entry) and first.at.file != modprobe_d.DENY_FILE:
                lost.setdefault((entry.at.file, entry.pattern, first.at), []).append(entry.at)
        for (_, pattern, first_at), places in lost.items():
            more = f" ({len(places) - 1} more below)" if len(places) > 1 else ""
            text = f"{kind} of {pattern} has no effect{more}: {first_at} takes precedence"
            yield error(places[0], "overridden", text)


def _says_the_same(one: Softdep | Command, other: Softdep | Command) -> bool:
    match one, other:
        case Softdep(), Softdep():
            return (one.pre, one.post) == (other.pre, other.post)
        case Command(), Command():
            return one.command == other.command
        case _:
            return False


def _softdeps(snapshot: Snapshot) -> Iterator[Finding]:
    """Find softdeps without modules, of names that are no module, and on modules that do not exist.

    Softdeps of packages and of the modules themselves are exempt, as they are made for many kernels.
    """
    for softdep in snapshot.config.softdeps:
        if _is_packaged(softdep.at) or softdep.at.file == modprobe_d.DENY_FILE:
            continue  # the empty one of `kmodd deny` keeps its install line in force
        words = (*softdep.pre, *softdep.post)
        comment = next((number for number, word in enumerate(words) if word.startswith("#")), len(words))
        if comment < len(words):
            text = (
                f"softdep of {softdep.pattern} names `{' '.join(words[comment:])}`: a comment needs a line of its own"
            )
            yield error(softdep.at, "comment", text)
        missing = [name for name in words[:comment] if not _resolves([name], snapshot)]
        if not softdep.pre and not softdep.post:
            text = f"softdep of {softdep.pattern} names no module after `pre:` or `post:`"
            yield error(softdep.at, "softdep", text)
        elif missing:
            text = f"softdep of {softdep.pattern}: no such module or alias: {_several(missing)}"
            yield warning(softdep.at, "unknown-module", text)
        if reason := _never_a_module(softdep.pattern, snapshot):
            yield error(softdep.at, "softdep", f"softdep of {softdep.pattern} has no effect: {reason}")


def _never_a_module(name: str, snapshot: Snapshot) -> str:
    """Return why a name that an alias resolves is never the module itself, or an empty text."""
    if not _is_literal(name) or snapshot.catalog.has(name):
        return ""
    if any(alias.module == name for alias in snapshot.config.aliases):
        return ""
    hits = lookup_or_nothing(name, snapshot)
    if not hits or hits[0].source == "command":
        return ""
    at = f" at {hits[0].at}" if hits[0].at else ""
    return f"{name} is an alias of {hits[0].module}{at}; name the module itself"


def _blacklists(snapshot: Snapshot, present: Callable[[str], bool]) -> Iterator[Finding]:
    """Find blacklist lines without effect: for unknown and builtin modules, and for dependencies of other modules."""
    config = snapshot.config
    defeated = not config.extensions.blacklist_dependencies
    users = _users(snapshot) if defeated and config.blacklist else {}
    blacklisted = {entry.module for entry in config.blacklist}
    for entry in config.blacklist:
        module = entry.module
        if not module:
            continue  # `modprobe.blacklist=` without names
        if "-" in module and entry.at.file == cmdline.PATH:
            text = f"modprobe.blacklist={module} has no effect: use {module.replace('-', '_')}"
            yield error(entry.at, "dash", text)
        elif wrong := no_name(module):
            yield error(entry.at, "blacklist", f"blacklist of {module} has no effect: it {wrong}")
        elif snapshot.catalog.is_builtin(module):
            text = f"blacklist of {module} has no effect: it is built into the kernel"
            yield warning(entry.at, "builtin", text)
        elif reason := _never_a_module(module, snapshot):
            yield error(entry.at, "blacklist", f"blacklist of {module} has no effect: {reason}")
        elif snapshot.catalog.dep(module) is None:
            yield warning(entry.at, "unknown-module", f"blacklist of {module}: no such module")
        elif snapshot.lines.install(module):
            continue  # its command is run in place of the load
        elif pulled := [
            user
            for user in users.get(module, ())
            if user not in blacklisted and _loads(user, module, snapshot, present)
        ]:
            text = f"{module} is still loaded as a dependency of {_several(pulled)}; {_stop(module, snapshot)}"
            yield warning(entry.at, "blacklist", text)


def _stop(module: str, snapshot: Snapshot) -> str:
    """Return what keeps a module out: an install line, which needs a setting where a softdep disables it."""
    install = f"`install {module} /bin/false` prevents that"
    softdep = _disabling_softdep(module, snapshot)
    if softdep is None or snapshot.config.extensions.softdep_keeps_install:
        return install
    return f"{install} with SoftdepKeepsInstall=yes in kmodd.conf: the softdep at {softdep.at} disables it"


def _loads(user: str, module: str, snapshot: Snapshot, present: Callable[[str], bool]) -> bool:
    """Return whether a request for `user` loads `module`: what `user` needs exists, and neither is blocked."""
    plan = resolve(Request(user, "operator"), snapshot, NOTHING_LOADED, ProbeOptions(), present)
    return any(step.module == module for step in plan.steps)


def _users(snapshot: Snapshot) -> dict[ModuleName, list[ModuleName]]:
    """Return, by module, the modules that have it as a dependency or softdep."""
    users: dict[ModuleName, list[ModuleName]] = {}
    for name in snapshot.catalog.names():
        found = snapshot.catalog.dep(name)
        for path in found.deps if found else ():
            users.setdefault(module_of_path(path), []).append(name)
    for softdep in snapshot.config.softdeps:
        if not snapshot.catalog.has(softdep.pattern):
            continue
        for word in (*softdep.pre, *softdep.post):
            for hit in lookup_or_nothing(word, snapshot):
                pulled = users.setdefault(hit.module, [])
                if softdep.pattern not in pulled:
                    pulled.append(ModuleName(softdep.pattern))
    return users


def _disabled_commands(snapshot: Snapshot) -> Iterator[Finding]:
    """Find install and remove lines that are never run.

    A softdep disables an install line ("softdep takes precedence", modprobe.d(5)); the name of an alias is not that of
    a module, and the alias is looked up first; a module of the kernel's image is neither loaded nor removed.
    """
    config = snapshot.config
    for kind, commands in (("install", config.installs), ("remove", config.removes)):
        for command in commands:
            if _is_literal(command.pattern) and snapshot.catalog.is_builtin(command.pattern):
                text = f"{kind} command of {command.pattern} is never run: it is built into the kernel"
                yield warning(command.at, "builtin", text)
            elif alias := _alias_before(command.pattern, snapshot):
                text = f"{kind} command of {command.pattern} is never run: the alias at {alias} takes precedence"
                yield error(command.at, "overridden", text)
    if config.extensions.softdep_keeps_install:
        return
    for install in config.installs:
        names = [install.pattern]
        if not _is_literal(install.pattern):
            names = [name for name in snapshot.catalog.names() if fnmatch.matches(install.pattern, name)]
        for name in names:
            if softdep := _disabling_softdep(name, snapshot):
                text = f"install command of {name} is never run: the softdep at {softdep.at} takes precedence"
                yield error(install.at, "overridden", f"{text}, unless SoftdepKeepsInstall=yes is set in kmodd.conf")


def _missing_programs(snapshot: Snapshot, present: Callable[[str], bool]) -> Iterator[Finding]:
    """Find install and remove lines with a program that does not exist."""
    config = snapshot.config
    for kind, commands in (("install", config.installs), ("remove", config.removes)):
        for command in commands:
            text = command.command.partition(" #")[0]
            known = _EVERYWHERE.union(_GUARD.findall(text))
            missing = [
                path for path in dict.fromkeys(_PROGRAM.findall(text)) if path not in known and not present(path)
            ]
            if missing:
                text = f"{kind} command of {command.pattern}: no such program {_several(missing)}"
                yield warning(command.at, "command", text)


def _alias_before(name: str, snapshot: Snapshot) -> Where | None:
    """Return the place of the alias line that a request for `name` finds, if no module can have this name."""
    if not _is_literal(name) or snapshot.catalog.has(name):
        return None
    if any(alias.module == name for alias in snapshot.config.aliases):
        return None
    aliases = snapshot.lines.aliases(name)
    return aliases[0].at if aliases else None


def _disabling_softdep(name: str, snapshot: Snapshot) -> Softdep | None:
    """Return the softdep of a module for which its install line is not run; None: there is none."""
    softdeps = snapshot.lines.softdeps(name)
    if not snapshot.config.extensions.softdeps_add_up:
        del softdeps[1:]
    return next((line for line in softdeps if _resolves((*line.pre, *line.post), snapshot)), None)


CHECKS: tuple[Callable[[Snapshot], Iterator[Finding]], ...] = (
    _bad_lines,
    _aliases,
    _overridden,
    _softdeps,
    _disabled_commands,
    check_endless,
    check_kernel_blacklist,
)
