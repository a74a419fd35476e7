"""What remains true of a module that is denied: where it is already, what would have brought it, and what still can."""

from __future__ import annotations

import re

from kmodd.config.modprobe_d import DENY_FILE, without
from kmodd.dataclass import dataclass
from kmodd.index.catalog import ConfigLines, Snapshot, lookup_or_nothing
from kmodd.kernel.proc_modules import NOTHING_LOADED
from kmodd.names import module_of_path
from kmodd.planning.request import Request
from kmodd.planning.resolve import ProbeOptions, resolve
from kmodd.text import count_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from kmodd.errors import Where
    from kmodd.kernel.proc_modules import Loaded, LoadedModule
    from kmodd.planning.history import Entry
    from kmodd.planning.load_errors import KernelFacts

_LOADS = ("loaded", "live", "builtin")
"""Results of requests that had what they asked for."""
_SHOWN = 5
"""Names in a sentence at most."""
_INITCALL = re.compile(r"^__initcall__kmod_(.+)__[0-9]+_[0-9]+_(\w+?)(?:early|rootfs|con|[0-7]s?)$", re.ASCII)
"""A symbol of the kernel for an initcall (include/linux/init.h __initcall_name): module and function."""


@dataclass(frozen=True, slots=True)
class Truth:
    """The facts about one module."""

    module: str
    loaded: LoadedModule | None = None
    """Its line of /proc/modules; None: it is not loaded."""
    is_builtin: bool = False
    has_file: bool = False
    """Whether the tree has it as a module."""
    initcalls: tuple[str, ...] | None = None
    """builtin: the functions for initcall_blacklist=; None: the kernel's symbols do not tell."""
    aliases: tuple[str, ...] = ()
    """Patterns that resolve to it."""
    users: tuple[str, ...] = ()
    """Modules that have it as a dependency."""
    softdeps: tuple[str, ...] = ()
    """Modules with a softdep on it."""
    overrides: tuple[str, ...] = ()
    """Lines of modprobe.d by which modprobe loads it all the same, while kmodd does not run."""
    askers: tuple[tuple[str, int], ...] = ()
    """Units or users whose requests loaded it according to the history, each with their number."""
    history: str = ""
    """Why the history is not known; empty: it is."""
    kernel_refuses: str = ""
    """Why root cannot load its file either; empty: root can."""
    initrds: tuple[str, ...] | None = None
    """Images that carry the module; None: there are none to be read."""
    initrd_problem: str = ""
    """Why there are none."""
    unread: tuple[tuple[str, str], ...] = ()
    """Images that cannot be read, each with why."""
    hint: str = ""
    """`; did you mean 'NAME'?` of a name that the tree lacks; empty: no module has a name like it."""


def initcalls_of(symbols: Iterable[str], module: str) -> tuple[str, ...] | None:
    """Return the functions that initialize a module of the kernel's image, for initcall_blacklist=; None: unknown.

    symbols: the lines of /proc/kallsyms, whose symbols of initcalls have the module's name and the function.
    """
    found = [match for line in symbols if (match := _INITCALL.match(line.split()[2] if line.count(" ") >= 2 else ""))]
    return tuple(dict.fromkeys(match[2] for match in found if match[1].replace("-", "_") == module)) or None


def bringers_of(module: str, snapshot: Snapshot) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the aliases of a module, the modules that depend on it, and those with a softdep on it."""
    catalog, config = snapshot.catalog, snapshot.config
    aliases = [alias.pattern for alias in config.aliases if alias.module == module]
    aliases += [pattern for pattern, name in catalog.dump("modules.alias") if name == module]
    users = [
        name
        for name in catalog.names()
        if (line := catalog.dep(name)) and module in [str(module_of_path(path)) for path in line.deps]
    ]
    softdeps = [
        line.pattern
        for line in config.softdeps
        if any(hit.module == module for word in (*line.pre, *line.post) for hit in lookup_or_nothing(word, snapshot))
    ]
    return tuple(dict.fromkeys(aliases)), tuple(sorted(users)), tuple(dict.fromkeys(softdeps))


def overrides_of(module: str, snapshot: Snapshot) -> tuple[str, ...]:
    """Return the lines of modprobe.d that modprobe runs or obeys in place of those of `kmodd deny`, with their places.

    The first install line and the first softdep line of a name count, by the order of the files' base names; an install
    line for an alias counts in any file, and may name the module in its command.
    """
    others = ConfigLines(without(snapshot.config, frozenset((DENY_FILE,))))
    aliases = frozenset(bringers_of(module, snapshot)[0])
    found = []
    first = others.install(module)
    if first and _precedes(first.at):
        found.append(f"the install line at {first.at}")
    for line in snapshot.config.installs:
        words = re.split(r"\W+", line.command.replace("-", "_"), flags=re.ASCII)
        if line.pattern in aliases and line.pattern != module and module in words:
            found.append(f"the install line at {line.at}")
    softdep = next(iter(others.softdeps(module)), None)
    if softdep and _precedes(softdep.at) and not snapshot.config.extensions.softdep_keeps_install:
        found.append(f"the softdep at {softdep.at}, which disables the install line")
    return tuple(dict.fromkeys(found))


def _precedes(at: Where) -> bool:
    """Return whether a file of modprobe.d is read before that of `kmodd deny`."""
    return at.file.rpartition("/")[2] < DENY_FILE.rpartition("/")[2]


def askers_of(module: str, entries: Iterable[Entry]) -> tuple[tuple[str, int], ...]:
    """Return the units, or else the users, whose requests loaded a module, most frequent first."""
    counts: dict[str, int] = {}
    for entry in entries:
        if entry.requester is None or entry.is_detail or entry.result not in _LOADS:
            continue
        if module not in (entry.module, *entry.modules):
            continue
        name = entry.requester.unit or f"uid {entry.requester.uid}"
        counts[name] = counts.get(name, 0) + 1
    return tuple(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def why_kernel_refuses(facts: KernelFacts) -> str:
    """Return why the kernel takes no module file, not even from root, or only a signed one; empty: it takes any."""
    if facts.modules_disabled:
        return "the kernel loads no module until the next boot (kernel.modules_disabled=1)"
    if facts.lockdown in ("integrity", "confidentiality") or facts.sig_enforce:
        return "signed"
    return ""


def loaded_module(loaded: Loaded, module: str) -> LoadedModule | None:
    """Return the line of /proc/modules for a module, None if it is not loaded."""
    modules: Mapping[str, LoadedModule] = {str(name): line for name, line in loaded.modules.items()}
    return modules.get(module)


def why_blocked(module: str, snapshot: Snapshot, present: Callable[[str], bool]) -> str:
    """Return the line of modprobe.d, but for those of `kmodd deny`, that keeps a module out; empty: none."""
    others = Snapshot(snapshot.catalog, without(snapshot.config, frozenset((DENY_FILE,))))
    plan = resolve(Request(module, "operator"), others, NOTHING_LOADED, ProbeOptions(blacklist="always"), present)
    skips = [skip for skip in plan.skips if skip.reason in ("blocked", "blacklisted")]
    return skips[0].why() if skips else ""


def sentences(truth: Truth) -> list[str]:
    """Return the facts as sentences, without a full stop."""
    return [*_presence(truth), *_bringers(truth), *_loopholes(truth)]


def as_object(truth: Truth) -> dict[str, object]:
    """Return the facts as JSON values."""
    loaded = truth.loaded
    return {
        "loaded": loaded is not None,
        "references": loaded.refcnt if loaded else None,
        "holders": list(loaded.holders) if loaded else [],
        "builtin": truth.is_builtin,
        "in_tree": truth.has_file,
        "initcalls": None if truth.initcalls is None else list(truth.initcalls),
        "aliases": list(truth.aliases),
        "dependents": list(truth.users),
        "softdeps_of": list(truth.softdeps),
        "overrides": list(truth.overrides),
        "used_by": None if truth.history else [{"who": who, "loads": loads} for who, loads in truth.askers],
        "used_by_unknown": truth.history or None,
        "kernel_refuses": truth.kernel_refuses or None,
        "initrds": None if truth.initrds is None else list(truth.initrds),
        "initrds_unknown": truth.initrd_problem if truth.initrds is None else None,
        "images_not_read": [path for path, _ in truth.unread],
    }


def _presence(truth: Truth) -> list[str]:
    name, loaded = truth.module, truth.loaded
    found = []
    if loaded:
        users = f", used by {_several(loaded.holders)}" if loaded.holders else ""
        number = 0 if loaded.holders else loaded.refcnt or 0
        count = f", with {count_of(number, 'reference')}" if number > 0 else ""
        found.append(
            f"{name} is loaded now{users}{count}: it stays until `kmodd deny --unload {name}` or the next boot"
        )
    elif not truth.is_builtin:
        found.append(f"{name} is not loaded now")
    if truth.is_builtin:
        found.append(f"{name} is built into the kernel: no rule keeps it out")
        if truth.initcalls:
            found.append(
                f"initcall_blacklist={','.join(truth.initcalls)} on the kernel command line keeps it from starting"
            )
        else:
            found.append(
                "The functions for initcall_blacklist= cannot be told: /proc/kallsyms does not name its initcalls"
            )
    elif not truth.has_file:
        found.append(f"This kernel's tree has no module {name}: the rule holds if one comes{truth.hint}")
    return found


def _bringers(truth: Truth) -> list[str]:
    name = truth.module
    found = []
    if truth.aliases:
        found.append(f"Aliases that would have brought it: {_several(truth.aliases)}")
    if truth.users:
        found.append(f"Modules that need it and fail without it: {_several(truth.users)}")
    if truth.softdeps:
        found.append(f"Modules with a softdep on it, which come without it: {_several(truth.softdeps)}")
    if truth.askers:
        who = _several([f"{unit} ({loads} times)" if loads > 1 else unit for unit, loads in truth.askers])
        found.append(f"According to the history, it was loaded for {who}")
    elif truth.history:
        found.append(f"Whether a service has used it is not known: {truth.history}")
    elif truth.has_file:
        found.append(f"The journal, as far as it goes back, has no process that made the kernel load {name}")
    return found


def _loopholes(truth: Truth) -> list[str]:
    found = []
    if truth.overrides:
        found.append(f"While kmodd does not run, modprobe loads it all the same, by {_several(truth.overrides)}")
    if truth.kernel_refuses == "signed":
        found.append("Root can still load its file with insmod if it is signed; `kmodd seal --permanent` ends that")
    elif truth.kernel_refuses:
        found.append(f"Root cannot load its file with insmod either: {truth.kernel_refuses}")
    else:
        found.append("Root can still load its file with insmod; `kmodd seal --permanent` ends that")
    if truth.has_file and not truth.kernel_refuses.startswith("the kernel"):
        found.append("Root can still load it with `modprobe -i`, which ignores install lines")
    found += [f"Whether {path} carries it is not known: {why}" for path, why in truth.unread]
    if truth.initrds is None:
        found.append(f"Whether an initrd carries it cannot be told: {truth.initrd_problem}")
    elif truth.initrds:
        found.append(f"It is in {_several(truth.initrds)}, which loads it before kmodd: rebuild the image without it")
    return found


def _several(names: Iterable[str]) -> str:
    """Return names as a list, with the number of those that are left out."""
    all_names = list(names)
    more = len(all_names) - _SHOWN
    return ", ".join(all_names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
