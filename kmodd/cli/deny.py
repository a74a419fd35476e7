"""`kmodd deny`: forbid modules, and say what remains true of them."""

from __future__ import annotations

import json
import sys
import time

from kmodd.cli.deny_facts import read_askers, truth_of
from kmodd.cli.deny_unload import carry_out as remove
from kmodd.cli.deny_unload import unload_of
from kmodd.cli.local_edit import (
    DRY_RUN,
    FOR,
    ROOT,
    Moment,
    WrongName,
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
from kmodd.cli.verb import JSON, KERNEL, SOCKET, Given, Option, Verb
from kmodd.config.policy_d import LOCAL, TEMPORARY, Condition
from kmodd.dataclass import dataclass
from kmodd.errors import NoTree
from kmodd.host.config_files import read_flags, read_settings
from kmodd.host.local_files import Edit, EditError, read_text
from kmodd.host.paths import CONTROL_SOCKET
from kmodd.host.tree import Tree
from kmodd.host.uses import read_uses
from kmodd.planning.essentials import vital_without
from kmodd.planning.local_rules import Change, forbid, pruned, without_allows
from kmodd.planning.module_truth import as_object, bringers_of, overrides_of, sentences
from kmodd.planning.unload import in_use, plan_sentences, removal_as_object, result_sentences
from kmodd.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kmodd.config.kmodd_conf import Settings
    from kmodd.index.catalog import Snapshot
    from kmodd.planning.module_truth import Truth
    from kmodd.planning.unload import Unload, Unloaded

VERB = Verb(
    "deny",
    f"Forbid modules: write a rule into {LOCAL}, which is enforced whatever Policy= says, and for all also lines into "
    "modprobe.d, which hold while kmodd is stopped, crashed or upgraded. A rule for all replaces those for some. "
    "Then say whether the module is loaded or built in, what would have brought it, and who can still load it.",
    (
        FOR,
        Option("--why", "the reason, such as a CVE, for the comment of the rule", "TEXT"),
        Option("--from", "a file with names of modules, - for standard input", "FILE"),
        Option("--unload", "also remove the modules now, and before them those that use them"),
        Option("--force", "also deny what root's disk or the only network needs, and remove what is in use"),
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
            "rule of an earlier file allows a module all the same, or one could not be removed",
        ),
    ),
    (
        ("deny algif_aead --why CVE-2026-31431", "Keep this module out, for all."),
        ("deny --for www-data af_alg", "Keep it from the requests of this user's processes."),
        ("deny --unload algif_aead", "Also remove it now; with --dry-run, show what would go."),
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
    if "unload" in given and given.get("root") and "dry-run" not in given:
        return VERB.refuse("--unload removes modules of this machine; with --root it needs --dry-run")
    try:
        check_options(given)
        whom = whom_of(given.get("for", "all"), given.get("root").rstrip("/"))
        modules = modules_of(given.operands, given.get("from"))
    except (ValueError, WrongName) as error:
        return VERB.refuse(str(error))
    except OSError as error:
        VERB.complain(f"Failed to read {given.get('from')}: {error.strerror}")
        return 1
    settings = read_settings(given.get("root"))
    tree = Tree(given.get("root"), given.get("kernel") or None, extensions=settings.extensions)
    return _Denial(given, modules, whom, tree, settings).run()


@dataclass(frozen=True, slots=True)
class _Done:
    """What a call has done, or would do."""

    edits: Sequence[Edit]
    is_changed: bool
    runs: bool
    """Whether the daemon runs, and has read the rules."""
    exceptions: dict[str, str]
    """Module → the rule of another file that allows it all the same; empty: none."""
    unload: Unload | None
    """The removal; None without --unload."""
    unloaded: Unloaded | None
    """Its result; None: it was not carried out."""
    refused: str = ""
    """Why nothing is done without --force."""
    forced: tuple[str, ...] = ()
    """What --force takes or breaks."""

    @property
    def is_whole(self) -> bool:
        """Whether all is done that was asked for."""
        known = (*self.unload.builtin, *self.unload.held) if self.unload else ()
        stays = self.unloaded.stayed if self.unloaded else known
        return not stays and not self.refused and not any(self.exceptions.values())


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
        """Check the names, write the rules, remove the modules, and print the facts. Returns the exit status."""
        try:
            if self._snapshot:
                check_no_alias(self._modules, self._snapshot, self._tree.loaded())
        except WrongName as error:
            VERB.complain(str(error))
            return 1
        before = self._snapshot or self._tree.quick_snapshot()
        unload = unload_of(self._modules, self._tree, before) if "unload" in self._given else None
        held, lost = self._why_in_use(unload), self._why_vital()
        if "force" not in self._given and (why := (held and f"Failed to remove {held}") or lost):
            return self._refuse(unload, why)
        forced = tuple(filter(None, (held, lost)))
        for why in () if "json" in self._given else forced:
            VERB.complain(f"By force: {why}")
        is_dry = "dry-run" in self._given
        try:
            edits, is_changed = carry_out(self._tree.root, self._edits, is_dry=is_dry)
        except EditError as error:
            VERB.complain(f"{error}; nothing is denied")
            return 1
        runs = not self._tree.root and not is_dry and reload(self._given.get("socket", CONTROL_SOCKET), VERB)
        exceptions = {module: self._exception(edits, module) for module in self._modules}
        unloaded = remove(self._modules, unload, self._tree, before) if unload and not is_dry else None
        done = _Done(edits, is_changed, runs, exceptions, unload, unloaded, forced=forced)
        if "json" in self._given:
            self._print_json(done)
        else:
            self._print(done)
        return 0 if done.is_whole else 1

    def _refuse(self, unload: Unload | None, why: str) -> int:
        """Print what would have been done, and why it is not without --force. Returns the exit status."""
        if "json" in self._given:
            self._print_json(_Done((), False, False, {}, unload, None, why))
        for line in plan_sentences(unload) if unload and "json" not in self._given else ():
            print(printable(line))
        sys.stdout.flush()
        VERB.complain(f"{why}; nothing is changed without --force")
        return 1

    def _read_tree(self) -> Snapshot | None:
        try:
            self._tree.check()
        except NoTree as error:
            VERB.complain(f"{error}; names are not checked")
            return None
        return self._tree.quick_snapshot()

    def _why_in_use(self, unload: Unload | None) -> str:
        """Return the modules of a removal, and what is in use and needs one of them or holds it; empty: nothing."""
        why = in_use(unload) if unload else ""
        return f"{', '.join(unload.modules)}: {why}" if unload and why else ""

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
        now = Moment(read_flags(self._tree.root), time.clock_gettime(time.CLOCK_BOOTTIME))
        requests = (module, *(bringers_of(module, self._snapshot)[0] if self._snapshot else ()))
        decisions = [*decisions_of(policy, module, requests, self._whom, now)]
        allowed = [decision for decision in decisions if not decision.refused]
        if not allowed:
            return ""
        some = " to some" if len(allowed) < len(decisions) else ""
        rule = f"{allowed[0].text} at {allowed[0].at}"
        return f"A rule of an earlier file allows {module} all the same{some}: {rule}; see `kmodd policy test {module}`"

    def _truths(self) -> dict[str, Truth]:
        """Return the facts by module; without a module tree there are none."""
        if self._snapshot is None:
            return {}
        asked = read_askers(self._modules, self._tree.root)
        return {module: truth_of(module, self._tree, self._snapshot, asked) for module in self._modules}

    def _print(self, done: _Done) -> None:
        for why in filter(None, done.exceptions.values()):
            print(printable(why))
        if "dry-run" not in self._given and not all(done.exceptions.values()):
            print(self._scope(done.runs))
        show(done.edits)
        for path in hidden_by(self._tree.root, done.edits):
            print(printable(f"{path} is not read any more, as a file of its name comes first now"))
        if not done.is_changed:
            print("Nothing to change: the rules are there already")
        if done.unload:
            result = result_sentences(done.unload, done.unloaded) if done.unloaded else plan_sentences(done.unload)
            print("".join(f"{printable(line)}\n" for line in result), end="")
        for truth in self._truths().values():
            for line in sentences(truth):
                print(printable(line))
        sys.stdout.flush()

    def _print_json(self, done: _Done) -> None:
        truths = self._truths()
        for module in self._modules:
            fields = {
                "module": module,
                "for": str(self._whom[0]) if self._whom else "all",
                "changed": done.is_changed and "dry-run" not in self._given,
                "files": [edit.path for edit in done.edits if edit.before != edit.after],
                "daemon_runs": done.runs,
                "exception": done.exceptions.get(module) or None,
                "refused": done.refused or None,
                "forced": list(done.forced),
                "unload": removal_as_object(done.unload, done.unloaded) if done.unload else None,
                "facts": as_object(truths[module]) if module in truths else None,
            }
            print(json.dumps(fields))
        sys.stdout.flush()
