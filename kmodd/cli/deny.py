"""`kmodd deny`: forbid modules, and say what remains true of them."""

from __future__ import annotations

import json
import sys
import time

from kmodd.cli.deny_facts import read_askers, truth_of
from kmodd.cli.local_edit import (
    DRY_RUN,
    FOR,
    ROOT,
    WrongName,
    carry_out,
    check_no_alias,
    check_options,
    denial_of,
    edits_of,
    modules_of,
    policy_after,
    reload,
    show,
    whom_of,
)
from kmodd.cli.verb import JSON, KERNEL, SOCKET, Given, Option, Verb
from kmodd.config.policy_d import LOCAL, TEMPORARY, Condition
from kmodd.errors import NoTree
from kmodd.host.config_files import read_flags, read_settings
from kmodd.host.local_files import Edit, EditError, read_text
from kmodd.host.paths import CONTROL_SOCKET
from kmodd.host.tree import Tree
from kmodd.host.uses import read_uses
from kmodd.planning.essentials import vital_without
from kmodd.planning.local_rules import Change, forbid, pruned, without_allows
from kmodd.planning.module_truth import as_object, overrides_of, sentences
from kmodd.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kmodd.config.kmodd_conf import Settings
    from kmodd.index.catalog import Snapshot
    from kmodd.planning.module_truth import Truth

VERB = Verb(
    "deny",
    f"Forbid modules: write a rule into {LOCAL}, which is enforced whatever Policy= says, and for all also lines into "
    "modprobe.d, which hold while kmodd is stopped, crashed or upgraded. A rule for all replaces those for some. "
    "Then say whether the module is loaded or built in, what would have brought it, and who can still load it.",
    (
        FOR,
        Option("--why", "the reason, such as a CVE, for the comment of the rule", "TEXT"),
        Option("--from", "a file with names of modules, - for standard input", "FILE"),
        Option("--force", "also deny what root's disk or the only network needs"),
        DRY_RUN,
        JSON,
        SOCKET,
        ROOT,
        KERNEL,
    ),
    "MODULE…",
    (
        (0, "the rules are written, or were there"),
        (
            1,
            "nothing is written, as --force is missing, a name is that of an alias, or a file cannot be written; or a "
            "rule of an earlier file allows a module all the same",
        ),
    ),
    (
        ("deny algif_aead --why CVE-2026-31431", "Keep this module out, for all."),
        ("deny --for www-data af_alg", "Keep it from the requests of this user's processes."),
        ("deny --from advisory.txt --dry-run", "What would be written, and what is true of each name?"),
    ),
)


def main(argv: list[str]) -> int:
    """Deny the modules; return 0 if the rules are there, 1 if not, 2 for wrong usage."""
    given = VERB.parse(argv)
    if isinstance(given, int):
        return given
    if not given.operands and "from" not in given:
        return VERB.refuse("MODULE is missing")
    if any(not char.isprintable() for char in given.get("why")):
        return VERB.refuse("--why takes one line of text")
    try:
        check_options(given)
        whom = whom_of(given.get("for", "all"))
        modules = modules_of(given.operands, given.get("from"))
    except (ValueError, WrongName) as error:
        return VERB.refuse(str(error))
    except OSError as error:
        VERB.complain(f"Failed to read {given.get('from')}: {error.strerror}")
        return 1
    settings = read_settings(given.get("root"))
    tree = Tree(given.get("root"), given.get("kernel") or None, extensions=settings.extensions)
    return _Denial(given, modules, whom, tree, settings).run()


class _Denial:
    """One call of the verb."""

    def __init__(
        self, given: Given, modules: list[str], whom: tuple[Condition, ...], tree: Tree, settings: Settings
    ) -> None:
        self._given = given
        self._modules = modules
        self._whom = whom
        self._tree = tree
        self._settings = settings
        self._snapshot = self._read_tree()

    def run(self) -> int:
        """Check the names, write the rules, and print the facts. Returns the exit status."""
        try:
            if self._snapshot:
                check_no_alias(self._modules, self._snapshot)
        except WrongName as error:
            VERB.complain(str(error))
            return 1
        if "force" not in self._given and (why := self._why_vital()):
            VERB.complain(f"{why}; --force denies it all the same")
            return 1
        is_dry = "dry-run" in self._given
        try:
            edits, is_changed = carry_out(self._tree.root, self._edits, is_dry=is_dry)
        except EditError as error:
            VERB.complain(f"{error}; nothing is denied")
            return 1
        runs = not self._tree.root and not is_dry and reload(self._given.get("socket", CONTROL_SOCKET), VERB)
        exceptions = {module: self._exception(edits, module) for module in self._modules}
        if "json" in self._given:
            self._print_json(edits, is_changed, runs, exceptions)
        else:
            self._print(edits, is_changed, runs, exceptions)
        return 1 if any(exceptions.values()) else 0

    def _read_tree(self) -> Snapshot | None:
        try:
            self._tree.check()
        except NoTree as error:
            VERB.complain(f"{error}; names are not checked")
            return None
        return self._tree.quick_snapshot()

    def _why_vital(self) -> str:
        """Return what the machine would lose by a deny for all; empty: nothing that it needs."""
        if self._whom or self._snapshot is None:
            return ""
        lost = vital_without(self._modules, read_uses(self._tree.root), self._snapshot)
        needing = ", ".join(dict.fromkeys(map(str, lost)))
        return f"{needing} would be lost at the next boot without {' '.join(self._modules)}" if lost else ""

    def _edits(self) -> tuple[Edit, ...]:
        root = self._tree.root
        local, temporary = read_text(root, LOCAL), read_text(root, TEMPORARY)
        after = local
        ended = pruned(temporary, time.clock_gettime(time.CLOCK_BOOTTIME), read_flags(root))
        for module in self._modules:
            change = Change(module, self._whom, self._given.get("why"))
            after = forbid(after, change)
            ended = without_allows(ended, change)
        return edits_of(root, Edit(LOCAL, local, after), Edit(TEMPORARY, temporary, ended))

    # -- the answer --------------------------------------------------------------------------------------------

    def _scope(self, runs: bool) -> str:
        """Return where the rules hold, as a sentence."""
        if not self._whom and self._snapshot and any(overrides_of(each, self._snapshot) for each in self._modules):
            when = "once this root is booted, while kmodd runs" if self._tree.root else "while kmodd runs"
            now = "" if runs or self._tree.root else "kmodd does not run, so it does not hold now. "
            return f"{now}It holds {when}, but not while it does not, as modprobe.d has other lines"
        if self._tree.root:
            return "It holds once this root is booted"
        if self._whom:
            holds = "It holds while kmodd runs, and in a crash of it, but not after `systemctl stop kmodd`"
            return holds if runs else f"kmodd does not run, so it does not hold now. {holds}"
        now = "" if runs else "; kmodd does not run, so modprobe.d denies it"
        return f"It holds in each state of kmodd{now}"

    def _exception(self, edits: Sequence[Edit], module: str) -> str:
        """Return the rule of another file that allows the module all the same; empty: none."""
        mode = "enforce" if self._settings.policy_broken else self._settings.policy
        policy = policy_after(self._tree.root, mode, edits)
        flags, uptime = read_flags(self._tree.root), time.clock_gettime(time.CLOCK_BOOTTIME)
        return (
            ""
            if denial_of(policy, module, self._whom, flags, uptime)
            else (f"A rule of an earlier file allows {module} all the same; see `kmodd policy test {module}`")
        )

    def _truths(self) -> dict[str, Truth]:
        """Return the facts by module; without a module tree there are none."""
        if self._snapshot is None:
            return {}
        asked = read_askers(self._modules, self._tree.root)
        return {module: truth_of(module, self._tree, self._snapshot, asked) for module in self._modules}

    def _print(self, edits: Sequence[Edit], is_changed: bool, runs: bool, exceptions: dict[str, str]) -> None:
        for why in filter(None, exceptions.values()):
            print(printable(why))
        if "dry-run" not in self._given and not all(exceptions.values()):
            print(self._scope(runs))
        show(edits)
        if not is_changed:
            print("Nothing to change: the rules are there already")
        for truth in self._truths().values():
            for line in sentences(truth):
                print(printable(line))
        sys.stdout.flush()

    def _print_json(self, edits: Sequence[Edit], is_changed: bool, runs: bool, exceptions: dict[str, str]) -> None:
        truths = self._truths()
        for module in self._modules:
            facts = as_object(truths[module]) if module in truths else None
            print(
                json.dumps(
                    {
                        "module": module,
                        "for": str(self._whom[0]) if self._whom else "all",
                        "changed": is_changed and "dry-run" not in self._given,
                        "files": [edit.path for edit in edits if edit.before != edit.after],
                        "daemon_runs": runs,
                        "exception": exceptions[module] or None,
                        "facts": facts,
                    }
                )
            )
        sys.stdout.flush()
