"""`modprobe`: output and exit status of kmod 34.2; docs/COMPAT.md lists differences and their reasons.

The plan is made by `kmodd.planning.resolve`, as in the daemon. It is printed as by kmod, sent to the daemon
(`modprobe_remote`), or carried out in this process (`modprobe_execute`).
"""

from __future__ import annotations

import os
import stat

from kmodd.cli.kmod.messages import CRIT, ERR, WARNING, Messages, Stop
from kmodd.cli.kmod.modprobe_options import ModprobeOptions, read_options, words_of_environment
from kmodd.cli.streams import output_is_incidental
from kmodd.config import modprobe_d
from kmodd.host.tree import Tree
from kmodd.index.catalog import Snapshot
from kmodd.planning.plan import Goal, Insmod, Install, Plan, Skip
from kmodd.planning.request import Request
from kmodd.planning.resolve import ProbeOptions, hits_of, resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kmodd.cli.kmod.modprobe_execute import Actor, How
    from kmodd.cli.kmod.modprobe_remote import Daemon
    from kmodd.loader.in_process import Machine


def main(argv: list[str], machine: Machine | None = None) -> int:
    """Run modprobe and return 0 or 1.

    argv: the command line without the program's name. machine: carries out the steps; None: this machine.
    """
    messages = Messages("modprobe")
    try:
        options = read_options([*words_of_environment(os.environ.get("MODPROBE_OPTIONS")), *argv], messages)
        return _run(options, messages, machine)
    except Stop as stop:
        return stop.status
    finally:
        messages.flush()


# ── modes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _run(options: ModprobeOptions, messages: Messages, machine: Machine | None) -> int:
    messages.syslog = "s" in options.flags
    if not options.operands and "c" not in options.flags:
        messages.log(ERR, "missing parameters. See -h.")
        return 1
    tree = Tree(options.root, options.release, options.module_dir, options.config_paths or None)
    if tree.guessed:
        messages.say(f"modprobe: kernel {tree.release}, the only one below {options.root}")
    snapshot = tree.quick_snapshot(like_kmod=True)
    for complaint in snapshot.config.complaints:
        messages.say(complaint)
    messages.verbose = options.verbose
    try:
        return _do(options, tree, snapshot, messages, machine)
    finally:  # kmod does not report damaged indexes
        for problem in snapshot.catalog.problems:
            messages.log(ERR, str(problem))


def _do(options: ModprobeOptions, tree: Tree, snapshot: Snapshot, messages: Messages, machine: Machine | None) -> int:
    """Run the mode that the options select and return the exit status."""
    if "c" in options.flags:
        return _show_config(snapshot, messages)
    if options.flags & {"show-modversions", "show-exports"}:
        from kmodd.cli.kmod import modprobe_symbols

        return modprobe_symbols.show(options.operands[0], "show-modversions" in options.flags, tree, messages)
    if "r" in options.flags:
        remove = _remover(options, tree, snapshot, messages, machine)
        return max([remove(text) for text in options.operands])
    if "R" in options.flags:
        return _for_each(options, lambda text: _show_names(text, tree, snapshot, options, messages))
    if options.is_dry:
        return _for_each(options, lambda text: _show_plan(text, tree, snapshot, options, messages))
    insert = _inserter(options, tree, snapshot, messages, machine)
    return _for_each(options, insert)


# ── loading and removing ─────────────────────────────────────────────────────────────────────────────────────────────


def _remover(
    options: ModprobeOptions, tree: Tree, snapshot: Snapshot, messages: Messages, machine: Machine | None
) -> Callable[[str], int]:
    """Return a function that removes a module by name and returns the status, by the daemon or in this process."""
    actor = _actor(options, tree, snapshot, messages, machine)
    daemon = _daemon(options, actor.how, messages, machine)
    if daemon is None or snapshot.config.removes:  # commands run with the caller's privileges and output
        return actor.remove
    return lambda text: _or_else(daemon.remove(text), lambda: actor.remove(text))


def _inserter(
    options: ModprobeOptions, tree: Tree, snapshot: Snapshot, messages: Messages, machine: Machine | None
) -> Callable[[str], int]:
    """Return a function that loads a module by name and returns the status, by the daemon or in this process."""
    actor = _actor(options, tree, snapshot, messages, machine)
    daemon = _daemon(options, actor.how, messages, machine)
    from kmodd.cli.kmod.modprobe_execute import first_time

    def here(text: str) -> int:
        plan = _plan(text, tree, snapshot, options, messages)
        return 1 if plan is None else actor.insert(plan)

    def is_for_this_process(text: str) -> bool:
        """Return whether a command would be run, or `--first-time` would end the goal early."""
        if not (snapshot.config.installs or actor.how.first_time):
            return False
        plan = _resolve(text, tree, snapshot, options)
        if any(isinstance(step, Install) for step in plan.steps):
            return True
        return actor.how.first_time and any(first_time(goal) != goal for goal in plan.goals)

    def insert(text: str) -> int:
        if daemon is None or text.startswith(("/", "./")) or is_for_this_process(text):
            return here(text)
        params = () if "a" in options.flags else tuple(options.operands[1:])
        not_found = lambda: _not_found(text, tree, options, messages)  # noqa: E731
        return _or_else(daemon.insert(text, params, not_found), lambda: here(text))

    return insert


def _or_else(status: int | None, fallback: Callable[[], int]) -> int:
    """Return the daemon's status, or that of the fallback if the daemon did nothing."""
    return fallback() if status is None else status


def _actor(
    options: ModprobeOptions, tree: Tree, snapshot: Snapshot, messages: Messages, machine: Machine | None
) -> Actor:
    """Return the actor of this process, configured by the options."""
    output_is_incidental()
    from kmodd.cli.kmod.modprobe_execute import Actor, How
    from kmodd.loader import in_process

    flags = options.flags
    insert_options = in_process.InsertOptions(
        force_modversion=bool(flags & {"f", "force-modversion"}),
        force_vermagic=bool(flags & {"f", "force-vermagic"}),
        force_removal="f" in flags,
        wait_msec=options.wait_msec,
    )
    how = How(
        insert_options, all="a" in flags, first_time="first-time" in flags, shown=options.is_shown, dry=options.is_dry,
        ignore_loaded="D" in flags, ignore_commands="i" in flags, holders="remove-holders" in flags,
    )  # fmt: skip
    machine = machine or in_process.Machine()
    if options.handed_down:
        before = os.environ.get("MODPROBE_OPTIONS")
        words = [*([] if before is None else [before]), *options.handed_down]
        machine.env = {**os.environ, "MODPROBE_OPTIONS": " ".join(words)}
    return Actor(tree, snapshot, how, messages, machine)


def _daemon(options: ModprobeOptions, how: How, messages: Messages, machine: Machine | None) -> Daemon | None:
    """Return the running daemon if it would have the same effect as this process, else None."""
    if not _may_ask_daemon(options, machine):
        return None
    from kmodd.cli.kmod.modprobe_remote import Daemon

    return Daemon.within_reach(how, messages)


def _may_ask_daemon(options: ModprobeOptions, machine: Machine | None) -> bool:
    """Return whether a running daemon would have the same effect as this process."""
    plain = options.flags <= {"a", "r", "first-time"} and not options.wait_msec and not options.config_paths
    return plain and "MODPROBE_OPTIONS" not in os.environ and shares_tree(options, machine)


def shares_tree(options: ModprobeOptions, machine: Machine | None) -> bool:
    """Return whether the daemon uses the same tree, and this process may give it orders."""
    elsewhere = options.root or options.module_dir or options.release
    return machine is None and not elsewhere and os.geteuid() == 0


# ── printing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _for_each(options: ModprobeOptions, do: Callable[[str], int]) -> int:
    """Call `do` for all operands with -a, else for the first; return 1 if one failed."""
    names = options.operands if "a" in options.flags else options.operands[:1]
    return max([do(name) for name in names], default=0)


def _show_config(snapshot: Snapshot, messages: Messages) -> int:
    """Print the configuration, then the indexes of aliases and symbols (-c)."""
    messages.show(modprobe_d.dump(snapshot.config) + "\n# End of configuration files. Dumping indexes now:\n")
    for index in ("modules.alias", "modules.symbols"):
        for key, module in snapshot.catalog.dump(index):
            messages.show(f"alias {key} {module}")
    return 0


def _show_names(text: str, tree: Tree, snapshot: Snapshot, options: ModprobeOptions, messages: Messages) -> int:
    """Print the modules that match a name, with duplicates (-R)."""
    hits, complaints = hits_of(text, snapshot, tree.present)
    _complain(complaints, messages)
    for hit in hits:
        messages.show(hit.module)
    return 0 if hits else _not_found(text, tree, options, messages)


def _show_plan(text: str, tree: Tree, snapshot: Snapshot, options: ModprobeOptions, messages: Messages) -> int:
    """Print the steps for a name (-D, -n)."""
    plan = _plan(text, tree, snapshot, options, messages)
    if plan is None:
        return 1
    if "json" in options.flags:
        from kmodd.planning.explain import json_line

        messages.show(json_line(_kind(text, snapshot), plan))
        return 0 if any(goal.comes for goal in plan.goals) else 1
    return _show_goals(plan, options, messages)


def _kind(text: str, snapshot: Snapshot) -> str:
    """Return the kind of a request, as in docs/explain.schema.json."""
    if text.startswith(("/", "./")):
        return "file"
    name = text.replace("-", "_")
    is_module = snapshot.catalog.has(name)
    return "module" if is_module else "modalias" if ":" in text else "alias"


def _plan(text: str, tree: Tree, snapshot: Snapshot, options: ModprobeOptions, messages: Messages) -> Plan | None:
    """Return the plan for a name, or None after an error message if nothing matches."""
    plan = _resolve(text, tree, snapshot, options)
    _complain(plan.complaints, messages)
    if text.startswith(("/", "./")) and (why := _unusable(tree.real(plan.request.text))):
        messages.log(_level(options), f"Failed to get module from path {text}: {why}")
        return None
    if not plan.goals:
        _not_found(text, tree, options, messages)
        return None
    return plan


def _resolve(text: str, tree: Tree, snapshot: Snapshot, options: ModprobeOptions) -> Plan:
    """Return the plan for a name."""
    is_path = text.startswith(("/", "./"))
    # --root is the prefix of absolute paths: a relative one is below the working directory in all tools.
    wanted = f"{os.getcwd()}/{text}" if text.startswith("./") and not tree.root else text
    probe_options = ProbeOptions(
        blocked=options.is_dry and "json" in options.flags,  # kmod has no --json: here is what would happen
        blacklist="always" if "b" in options.flags else "alias",
        ignore_install="i" in options.flags,
        ignore_loaded="D" in options.flags,
        paths=True,
        foreign=True,
        relative_paths=True,
    )
    params = () if "a" in options.flags else tuple(options.operands[1:])
    request = Request(wanted, "operator", params=params)
    foreign = (lambda _: "") if is_path or options.is_dry else tree.foreign
    return resolve(request, snapshot, tree.loaded(), probe_options, tree.present, foreign=foreign)


def _unusable(path: str) -> str:
    """Return why a path is not that of a module file, or an empty text."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return os.strerror(error.errno or 0)
    return "" if stat.S_ISREG(mode) else "Not a regular file"


def _show_goals(plan: Plan, options: ModprobeOptions, messages: Messages) -> int:
    """Print the actions of each goal; return the status of the last goal."""
    status = 0
    for goal in plan.goals:
        _complain(goal.complaints, messages)
        if "first-time" in options.flags and "D" not in options.flags and _is_loaded(goal):
            messages.log(ERR, f"could not insert '{goal.module}': Module already in kernel")
            status = 1
            continue
        status = 0
        if options.is_shown:
            for line in actions(goal, options.flags >= {"D"}):
                messages.show(line)
    return status


def actions(goal: Goal, ignore_loaded: bool) -> list[str]:
    """Return the lines of kmod's print_action for a goal; a blank precedes the options even if there are none."""
    lines = []
    for entry in goal.entries:
        match entry:
            case Insmod():
                lines.append(f"insmod {entry.path} {entry.options}")
            case Install():
                lines.append(f"install {entry.command} {entry.options}")
            case Skip(reason="builtin") if ignore_loaded:
                lines.append(f"builtin {entry.module}")
            case Skip():
                pass
    return lines


def _is_loaded(goal: Goal) -> bool:
    match goal.entries:
        case (Skip(reason="live" | "builtin"),):
            return True
        case _:
            return False


def _not_found(text: str, tree: Tree, options: ModprobeOptions, messages: Messages) -> int:
    messages.log(_level(options), f"Module {text} not found in directory {tree.directory}")
    return 1


def _level(options: ModprobeOptions) -> int:
    """Return the level of messages for unknown names, which do not end the program with -a."""
    return WARNING if "a" in options.flags else CRIT


def _complain(complaints: Iterable[str], messages: Messages) -> None:
    for complaint in complaints:
        messages.log(ERR, complaint)
