"""Checks of the boot list and of the module lists on the kernel command line."""

from __future__ import annotations

from kmodd.config.cmdline import PATH
from kmodd.dataclass import replace
from kmodd.errors import Where
from kmodd.index.catalog import Snapshot
from kmodd.kernel.proc_modules import NOTHING_LOADED
from kmodd.names import MODULE_SUFFIXES, module_of_path
from kmodd.planning.findings import Finding, error, of_problem, warning
from kmodd.planning.plan import Skip
from kmodd.planning.request import Request
from kmodd.planning.resolve import options_of, resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from kmodd.config.modules_load_d import BootList


def check_boot_list(snapshot: Snapshot, boot: BootList) -> Iterator[Finding]:
    """Find lines of modules-load.d, and names of `modules_load=`, that load nothing."""
    for problem in boot.problems:
        yield of_problem(problem)
    for module in boot.modules:
        if written := no_name(module.name):
            yield error(module.at, "boot", f"{module.name} {written}")
            continue
        plan = resolve(Request(module.name, "boot"), snapshot, NOTHING_LOADED, options_of("boot"), lambda _: True)
        if not plan.goals:
            text = f"no such module or alias {module.name}: nothing is loaded at boot"
            yield replace(error(module.at, "unknown-module", text), boot_name=module.name)
            continue
        ends = [entry for goal in plan.goals for entry in goal.entries if entry.module == goal.module]
        kept_out = [
            end for end in ends if isinstance(end, Skip) and end.reason in ("blacklisted", "blocked", "depends")
        ]
        if kept_out and all(end in kept_out or (isinstance(end, Skip) and end.reason == "builtin") for end in ends):
            end = kept_out[0]
            why = f"{end.of} is {end.rule}" if end.reason == "depends" else f"{end.module} is {end.why()}"
            text = f"{module.name} is not loaded at boot: {why}"
            yield replace(warning(module.at, "blacklist", text), boot_name=module.name)


def no_name(name: str) -> str:
    """Return why a text is no name of a module, or an empty text."""
    if (bare := name.strip("\"'")) != name:
        return f"is in quotes: expected a module's name, `{bare or 'NAME'}`"
    base = name.rpartition("/")[2]
    if "/" in name or base.endswith(MODULE_SUFFIXES):
        what = "is a path" if "/" in name else "is the name of a file"
        return f"{what}: expected a module's name, `{module_of_path(base) or 'NAME'}`"
    if "," in name:
        return "is no module's name: expected one name in each line"
    if any(character in name for character in "*?[]") and ":" not in name:
        return "is no module's name: wildcards are not supported here"
    return "" if "=" not in name or ":" in name else "is no module's name: options belong in modprobe.d"


def check_kernel_blacklist(snapshot: Snapshot) -> Iterator[Finding]:
    """Find names of `module_blacklist=` that the kernel never compares equal to a module's (kernel/module/main.c)."""
    for entry in snapshot.config.kernel_blacklist:
        plain = module_of_path(entry.module)
        option = f"module_blacklist={entry.module} has no effect"
        if plain != entry.module:
            yield error(Where(PATH, 1), "dash", f"{option}: the kernel compares each character, use {plain}")
        elif snapshot.catalog.is_builtin(plain):
            text = f"{option}: {plain} is built into the kernel"
            yield warning(Where(PATH, 1), "builtin", text)
        elif snapshot.catalog.dep(plain) is None:
            yield warning(Where(PATH, 1), "unknown-module", f"{option}: no such module")
