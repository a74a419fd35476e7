"""`kmodd allow`: take back what `kmodd deny` wrote, or make an exception, for some or for a time."""

from __future__ import annotations

import json
import math
import sys
import time

from kmodd.cli.local_edit import (
    DRY_RUN,
    FOR,
    ROOT,
    Moment,
    WrongName,
    absent_from,
    carry_out,
    check_no_alias,
    check_options,
    decisions_of,
    edits_of,
    hidden_by,
    modules_of,
    policy_after,
    reload,
    show,
    whom_of,
)
from kmodd.cli.verb import JSON, KERNEL, NOT_RUNNING, SOCKET, Given, Option, Verb
from kmodd.config.policy_d import LOCAL, TEMPORARY, Condition
from kmodd.errors import NoTree
from kmodd.host.config_files import read_flags, read_settings
from kmodd.host.local_files import Edit, EditError, read_text, set_flag
from kmodd.host.paths import CONTROL_SOCKET
from kmodd.host.tree import Tree
from kmodd.names import module_of_path
from kmodd.planning.local_rules import Change, denied_to_all, once_flag, permit, pruned, without_allows
from kmodd.planning.module_truth import bringers_of, why_blocked
from kmodd.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kmodd.config.kmodd_conf import Settings
    from kmodd.index.catalog import Snapshot

_WAYS = ("once", "for-seconds", "until-boot")
_MOST_SECONDS = 10**9
_MOST_DIGITS = 10
VERB = Verb(
    "allow",
    "Take back what `kmodd deny` wrote of modules, for all: also what it wrote for some; where another rule of "
    "policy.d denies them, write one that allows them. With a time limit the rules stay, and an exception is written "
    f"into {TEMPORARY}: what is loaded meanwhile stays loaded.",
    (
        FOR,
        Option("--once", "for a single load"),
        Option("--for-seconds", "for this long, suspend included", "N"),
        Option("--until-boot", "until the next boot"),
        DRY_RUN,
        JSON,
        SOCKET,
        ROOT,
        KERNEL,
    ),
    "MODULE…",
    (
        (0, "the modules are allowed"),
        (1, "one is still denied or blocked, or a file cannot be written"),
        (7, f"{NOT_RUNNING[1]}, which a time limit needs"),
    ),
    (
        ("allow algif_aead", "Take back `kmodd deny algif_aead`."),
        ("allow --for backup.service usb_storage", "Keep it from all others."),
        ("allow --for-seconds 600 usb_storage", "For ten minutes, also if kmodd is restarted meanwhile."),
    ),
)


def main(argv: list[str]) -> int:
    """Allow the modules; return 0 if they are allowed, 1 if not, 2 for wrong usage, 7 without the daemon it needs."""
    given = VERB.parse(argv, 1)
    if isinstance(given, int):
        return given
    ways = [way for way in _WAYS if way in given]
    if len(ways) > 1:
        return VERB.refuse(f"--{ways[0]} and --{ways[1]} exclude each other")
    seconds = given.get("for-seconds", "1")
    if not seconds.isdecimal() or len(seconds) > _MOST_DIGITS or not 0 < int(seconds) <= _MOST_SECONDS:
        return VERB.refuse(f"invalid --for-seconds {seconds!r}; expected a whole number of seconds")
    try:
        check_options(given)
        whom = whom_of(given.get("for", "all"), given.get("root").rstrip("/"))
        modules = modules_of(given.operands)
    except (ValueError, WrongName) as error:
        return VERB.refuse(str(error))
    settings = read_settings(given.get("root"))
    tree = Tree(given.get("root"), given.get("kernel") or None, extensions=settings.extensions)
    return _Exception(given, modules, whom, tree, settings).run(next(iter(ways), ""))


class _Exception:
    """One call of the verb."""

    def __init__(
        self, given: Given, modules: list[str], whom: tuple[Condition, ...], tree: Tree, settings: Settings
    ) -> None:
        self._given = given
        self._modules = modules
        self._whom = whom
        self._tree = tree
        self._settings = settings
        self._now = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._flags = read_flags(tree.root)
        """The flags that are set, those of single loads too that are set by this call."""
        self._absent: list[str] = []
        """Sentences about names that are of no module."""
        self._requests: dict[str, tuple[str, ...]] = {name: (name,) for name in modules}
        """Module → names by which it can come."""

    def run(self, way: str) -> int:
        """Write the rules, and print what still denies a module. way: the time limit, or empty. Returns the status."""
        socket = self._given.get("socket", CONTROL_SOCKET)
        is_dry = "dry-run" in self._given
        if way and not self._tree.root and not is_dry and not reload(socket, VERB):
            VERB.complain("the daemon is not running, which a time limit needs; nothing is allowed")
            return NOT_RUNNING[0]
        try:
            snapshot = self._snapshot()
            if snapshot:
                check_no_alias(self._modules, snapshot, self._tree.loaded())
                self._absent = absent_from(self._modules, snapshot, self._tree.loaded())
                self._requests = {name: (name, *bringers_of(name, snapshot)[0]) for name in self._modules}
            edits, is_changed = carry_out(self._tree.root, lambda: self._edits(way, is_dry=is_dry), is_dry=is_dry)
        except WrongName as error:
            VERB.complain(str(error))
            return 1
        except EditError as error:
            VERB.complain(f"{error}; nothing is allowed")
            return 1
        if not self._tree.root and not is_dry:
            reload(socket, VERB)
        still = self._still(edits)
        if "json" in self._given:
            self._print_json(edits, is_changed, still)
        else:
            self._print(edits, is_changed, way, still)
        return 1 if any(still.values()) else 0

    def _snapshot(self) -> Snapshot | None:
        """Return the indexes and modprobe.d as they are now; None without a module tree."""
        try:
            self._tree.check()
        except NoTree:
            return None
        return self._tree.quick_snapshot()

    def _edits(self, way: str, *, is_dry: bool) -> tuple[Edit, ...]:
        root = self._tree.root
        local, temporary = read_text(root, LOCAL), read_text(root, TEMPORARY)
        rules = Edit(LOCAL, local, local)
        limited = Edit(TEMPORARY, temporary, pruned(temporary, self._now, self._flags))
        for module in self._modules:
            change = Change(module, self._whom)
            if way:
                limited = self._limited(way, change, rules, limited, is_dry=is_dry)
                continue
            rules = Edit(LOCAL, local, permit(rules.after, change))
            limited = Edit(TEMPORARY, temporary, without_allows(limited.after, change))
            if self._denial(module, (rules, limited)):
                rules = Edit(LOCAL, local, permit(rules.after, change, needs_rule=True))
        return edits_of(root, rules, limited)

    def _limited(self, way: str, change: Change, rules: Edit, limited: Edit, *, is_dry: bool) -> Edit:
        """Return the edit of the temporary rules with an exception, if the module is denied without one."""
        without = Edit(TEMPORARY, limited.before, permit(limited.after, change))
        if not self._denial(change.module, (rules, without)) and change.module not in self._own_lines():
            return limited
        limit: tuple[Condition, ...] = ()
        if way == "for-seconds":
            limit = (Condition("until", (str(math.ceil(self._now + int(self._given.get("for-seconds")))),)),)
        elif way == "once":
            whom = "".join(each.wanted[0] for each in change.whom)
            flag = once_flag(change.module, whom)
            self._flags |= {flag}
            if not is_dry:
                set_flag(self._tree.root, flag)
            limit = (Condition("flag", (flag,)),)
        wanted = Change(change.module, change.whom, "", limit)
        return Edit(TEMPORARY, limited.before, permit(limited.after, wanted, needs_rule=True))

    def _own_lines(self) -> tuple[str, ...]:
        return denied_to_all(read_text(self._tree.root, LOCAL))

    def _denial(self, module: str, edits: Sequence[Edit], needing: str = "") -> str:
        """Return the rule that denies a module to `whom` after the edits, with its place; empty: none.

        needing: the module that is asked for, which needs this one; empty: it is this one.
        """
        mode = "enforce" if self._settings.policy_broken else self._settings.policy
        policy = policy_after(self._tree.root, mode, edits)
        requests, now = self._requests[needing or module], Moment(self._flags, self._now)
        for decision in decisions_of(policy, module, requests, self._whom, now):
            if decision.refused:
                return f"{decision.text} at {decision.at}"
        return ""

    # -- the answer --------------------------------------------------------------------------------------------

    def _still(self, edits: Sequence[Edit]) -> dict[str, str]:
        """Return, by module, what still keeps it out; empty: nothing."""
        snapshot = self._snapshot() if "dry-run" not in self._given else None
        found = {}
        for module in self._modules:
            found[module] = self._denial(module, edits)
            line = snapshot.catalog.dep(module) if snapshot else None
            for dep in map(str, map(module_of_path, line.deps if line else ())):
                if not found[module] and (why := self._denial(dep, edits, module)):
                    found[module] = f"that of {dep}, which it needs: {why}"
            if not found[module] and snapshot:
                found[module] = why_blocked(module, snapshot, self._tree.present)
        return found

    def _print(self, edits: Sequence[Edit], is_changed: bool, way: str, still: dict[str, str]) -> None:
        show(edits)
        for path in hidden_by(self._tree.root, edits):
            print(printable(f"{path} is not read any more, as a file of its name comes first now"))
        if not is_changed:
            print("Nothing to change: no rule has to be taken back or written")
        elif way:
            print("What is loaded meanwhile stays loaded; while kmodd does not run, modprobe.d denies it again")
        elif denied := [module for module in self._modules if module in denied_to_all(edits[0].after)]:
            print(f"While kmodd does not run, modprobe.d denies {' '.join(denied)} to all")
        for sentence in self._absent:
            print(printable(sentence))
        for module, why in still.items():
            if why:
                print(printable(f"{module} is still kept out by {why}"))
        sys.stdout.flush()

    def _print_json(self, edits: Sequence[Edit], is_changed: bool, still: dict[str, str]) -> None:
        for module, why in still.items():
            print(
                json.dumps(
                    {
                        "module": module,
                        "for": str(self._whom[0]) if self._whom else "all",
                        "changed": is_changed and "dry-run" not in self._given,
                        "files": [edit.path for edit in edits if edit.before != edit.after],
                        "kept_out_by": why or None,
                    }
                )
            )
        sys.stdout.flush()
