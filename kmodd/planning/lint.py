"""Find mistakes in the configuration: a `Snapshot` in, `Finding`s out.

A line of the administrator that has no effect, or another one than it states, is an error. In a file of a package
(below /usr/lib or /lib) it is a warning: packages are made for many kernels, and the administrator does not edit them.
"""

from __future__ import annotations

from itertools import chain

from kmodd.config import cmdline, modprobe_d
from kmodd.config.modprobe_d import Command, Config, Softdep
from kmodd.dataclass import dataclass
from kmodd.errors import Where
from kmodd.index import fnmatch
from kmodd.index.catalog import Snapshot, lookup_or_nothing
from kmodd.names import ModuleName, module_of_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Literal

    Severity = Literal["error", "warning"]

_PACKAGED = ("/usr/lib/", "/lib/")
_SHOWN = 3
"""Maximum number of names in a finding, where there may be hundreds."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A mistake and its place."""

    at: Where
    severity: Severity
    text: str

    def __str__(self) -> str:
        """Return `FILE:LINE: error: TEXT`, without LINE for a whole file; TEXT may include a bad line and a caret."""
        return f"{self.at}: {self.severity}: {self.text}"


def lint(snapshot: Snapshot, hidden: Iterable[tuple[str, str]] = ()) -> tuple[Finding, ...]:
    """Return the findings of CHECKS, and a warning for each file of `hidden`, sorted by file and line.

    hidden: result of `shadowed`.
    """
    text = "not read: {} has the same name and takes precedence"
    findings = [_warning(Where(path, 0), text.format(by)) for path, by in hidden]
    findings += chain.from_iterable(check(snapshot) for check in CHECKS)
    return tuple(sorted(findings, key=lambda finding: (finding.at.file, finding.at.line)))


def shadowed(places: Sequence[tuple[str, Iterable[str]] | str]) -> tuple[tuple[str, str], ...]:
    """Return each file that is not read because another has the same name, with that other file.

    places: as for `modprobe_d.ordered`.
    """
    each: list[tuple[str, Iterable[str]] | str] = []
    for place in places:
        each += [place] if isinstance(place, str) else [(place[0], [name]) for name in place[1]]
    taken = {path.rpartition("/")[2]: path for path in modprobe_d.ordered(each)}
    all_paths = chain.from_iterable(modprobe_d.ordered([place]) for place in each)
    return tuple((path, by) for path in all_paths if (by := taken[path.rpartition("/")[2]]) != path)


# ── helpers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _severity(at: Where) -> Severity:
    return "warning" if at.file.startswith(_PACKAGED) else "error"


def _mistake(at: Where, text: str) -> Finding:
    return Finding(at, _severity(at), text)


def _warning(at: Where, text: str) -> Finding:
    return Finding(at, "warning", text)


def _exists(name: str, snapshot: Snapshot) -> bool:
    return snapshot.catalog.dep(name) is not None or snapshot.catalog.is_builtin(name)


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


# ── checks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _bad_lines(snapshot: Snapshot) -> Iterator[Finding]:
    """Find lines that do not parse, and lines that end in CR LF."""
    config = snapshot.config
    for problem in config.problems:
        yield Finding(problem.at, "error", problem.expected + problem.shown())
    ends: list[tuple[str, Where]] = []
    ends += [(alias.module, alias.at) for alias in config.aliases]
    ends += [(entry.module, entry.at) for entry in config.blacklist]
    ends += [(options.text, options.at) for options in config.options]
    ends += [(softdep.text, softdep.at) for softdep in config.softdeps]
    ends += [(command.command, command.at) for command in (*config.installs, *config.removes)]
    for text, at in ends:
        if text.endswith("\r"):
            yield _mistake(at, "line ends in CR LF; the CR is part of the last word")


def _options(snapshot: Snapshot) -> Iterator[Finding]:
    """Find options for modules that do not exist. The kernel command line is exempt: it has `x.y=z` for others too."""
    patterns = {alias.pattern for alias in snapshot.config.aliases}
    for options in snapshot.config.options:
        if options.at.file == cmdline.PATH or options.module in patterns:
            continue
        if not _exists(options.module, snapshot) and not lookup_or_nothing(options.module, snapshot):
            hint = "" if _is_literal(options.module) else "; wildcards are not supported here"
            yield _mistake(options.at, f"options for {options.module}: no such module or alias{hint}")


def _aliases(snapshot: Snapshot) -> Iterator[Finding]:
    """Find aliases for modules that do not exist or are blacklisted, and aliases that hide a module."""
    blacklisted = {entry.module: entry.at for entry in snapshot.config.blacklist}
    commands = {command.pattern for command in snapshot.config.installs}
    for alias in snapshot.config.aliases:
        target = alias.module
        if not _exists(target, snapshot) and target not in commands:
            if lookup_or_nothing(target, snapshot):
                yield Finding(alias.at, "error", f"{target} is itself an alias: an alias of an alias is not resolved")
            else:
                yield _mistake(alias.at, f"alias {alias.pattern} has no effect: no such module {target}")
        elif target in blacklisted:
            text = f"alias {alias.pattern} is ignored: {target} is blacklisted at {blacklisted[target]}"
            yield _warning(alias.at, text)
        if alias.pattern != target and snapshot.catalog.dep(alias.pattern):
            yield _warning(alias.at, f"alias hides the module {alias.pattern} from requests by name")


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
            if first is not None and not _says_the_same(first, entry):
                lost.setdefault((entry.at.file, entry.pattern, first.at), []).append(entry.at)
        for (_, pattern, first_at), places in lost.items():
            more = f" ({len(places) - 1} more below)" if len(places) > 1 else ""
            yield _mistake(places[0], f"{kind} of {pattern} has no effect{more}: {first_at} takes precedence")


def _says_the_same(one: Softdep | Command, other: Softdep | Command) -> bool:
    match one, other:
        case Softdep(), Softdep():
            return (one.pre, one.post) == (other.pre, other.post)
        case Command(), Command():
            return one.command == other.command
        case _:
            return False


def _softdeps(snapshot: Snapshot) -> Iterator[Finding]:
    """Find softdeps without modules, or on modules that do not exist.

    Softdeps of packages and of the modules themselves are exempt, as they are made for many kernels.
    """
    for softdep in snapshot.config.softdeps:
        if _severity(softdep.at) == "warning":
            continue
        missing = [name for name in (*softdep.pre, *softdep.post) if not _resolves([name], snapshot)]
        if not softdep.pre and not softdep.post:
            yield _mistake(softdep.at, f"softdep of {softdep.pattern} names no module after `pre:` or `post:`")
        elif missing:
            yield _warning(softdep.at, f"softdep of {softdep.pattern}: no such module or alias: {_several(missing)}")


def _blacklists(snapshot: Snapshot) -> Iterator[Finding]:
    """Find blacklist lines without effect: for unknown and builtin modules, and for dependencies of other modules."""
    config = snapshot.config
    defeated = not config.extensions.blacklist_dependencies
    users = _users(snapshot) if defeated and config.blacklist else {}
    blacklisted = {entry.module for entry in config.blacklist}
    for entry in config.blacklist:
        module = entry.module
        if "-" in module and entry.at.file == cmdline.PATH:
            yield _mistake(entry.at, f"modprobe.blacklist={module} has no effect: use {module.replace('-', '_')}")
        elif snapshot.catalog.is_builtin(module):
            yield _warning(entry.at, f"blacklist of {module} has no effect: it is built into the kernel")
        elif snapshot.catalog.dep(module) is None:
            if _severity(entry.at) == "error":
                yield _warning(entry.at, f"blacklist of {module}: no such module")
        elif pulled := [user for user in users.get(module, ()) if user not in blacklisted]:
            stop = f"`install {module} /bin/false` prevents that"
            yield _warning(entry.at, f"{module} is still loaded as a dependency of {_several(pulled)}; {stop}")


def _users(snapshot: Snapshot) -> dict[ModuleName, list[ModuleName]]:
    """Return, by module, the modules that have it as a dependency or softdep."""
    users: dict[ModuleName, list[ModuleName]] = {}
    for name in snapshot.catalog.names():
        found = snapshot.catalog.dep(name)
        for path in found.deps if found else ():
            users.setdefault(module_of_path(path), []).append(name)
    for softdep in snapshot.config.softdeps:
        if not _exists(softdep.pattern, snapshot):
            continue
        for word in (*softdep.pre, *softdep.post):
            for hit in lookup_or_nothing(word, snapshot):
                pulled = users.setdefault(hit.module, [])
                if softdep.pattern not in pulled:
                    pulled.append(ModuleName(softdep.pattern))
    return users


def _disabled_installs(snapshot: Snapshot) -> Iterator[Finding]:
    """Find install lines that a softdep disables ("softdep takes precedence", modprobe.d(5))."""
    config = snapshot.config
    if config.extensions.softdep_keeps_install:
        return
    for install in config.installs:
        names = [install.pattern]
        if not _is_literal(install.pattern):
            names = [name for name in snapshot.catalog.names() if fnmatch.matches(install.pattern, name)]
        for name in names:
            softdep = _softdep_of(name, config)
            if softdep and _resolves((*softdep.pre, *softdep.post), snapshot):
                text = f"install command of {name} is never run: the softdep at {softdep.at} takes precedence"
                yield _mistake(install.at, text)


def _softdep_of(name: str, config: Config) -> Softdep | None:
    return next((softdep for softdep in config.softdeps if fnmatch.matches(softdep.pattern, name)), None)


CHECKS: tuple[Callable[[Snapshot], Iterator[Finding]], ...] = (
    _bad_lines,
    _options,
    _aliases,
    _overridden,
    _softdeps,
    _blacklists,
    _disabled_installs,
)
