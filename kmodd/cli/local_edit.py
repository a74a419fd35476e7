"""What `kmodd deny` and `kmodd allow` have in common: names, for whom, and how the files are changed and shown."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import sys

from kmodd.cli.client import NotRunning, Refused, call
from kmodd.cli.similar import hint
from kmodd.cli.verb import Option, Verb
from kmodd.config import policy_d
from kmodd.config.modprobe_d import DENY_FILE, ConfFile
from kmodd.config.policy_d import LOCAL, TEMPORARY, Condition
from kmodd.dataclass import dataclass
from kmodd.host.config_files import CONF_DIRS, read_rules
from kmodd.host.local_files import Edit, EditError, locked, read_text, write_all
from kmodd.host.paths import CONFIG_DIRS
from kmodd.host.regular_files import read_given
from kmodd.host.users import subordinate_uids, uid_of
from kmodd.index.catalog import Snapshot, lookup_or_nothing
from kmodd.kernel.requester import Requester
from kmodd.planning.denials import ASKERS
from kmodd.planning.local_rules import denied_to_all, is_module_name, modprobe_lines
from kmodd.planning.policy import Policy, PolicyDecision, PolicyQuery, rules_in_force
from kmodd.text import decode, encode, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from kmodd.cli.verb import Given
    from kmodd.config.policy_d import Mode, Rule
    from kmodd.kernel.proc_modules import Loaded
    from kmodd.planning.request import Origin

FOR = Option("--for", "all (default), a user (and her uids of /etc/subuid), or a unit such as backup.service", "WHO")
ROOT = Option("--root", "prefix of all paths that are read and written", "DIR")
DRY_RUN = Option("-n, --dry-run", "show the changes of the files, and change nothing")


_IS_CVE = re.compile(r"CVE-[0-9]{4}-[0-9]{4,}", re.ASCII | re.IGNORECASE).fullmatch
_POLICY_DIRS = tuple(f"{directory}/policy.d" for directory in CONF_DIRS)
_UNIT_TYPES = ("service", "scope", "slice", "socket", "mount", "swap")
"""Types of units that have a cgroup."""


class WrongName(Exception):
    """What was given names no module; the text says why."""


def modules_of(operands: Sequence[str], source: str = "") -> list[str]:
    """Return the modules that are named, each once, with `_`.

    source: a file with names, `-` for standard input, with comments after `#`; numbers of CVEs among them are skipped.
    Empty: none. Raises WrongName, OSError.
    """
    words = list(operands)
    if source:
        text = decode(read_given(0 if source == "-" else source))
        found = [word for line in text.splitlines() for word in line.partition("#")[0].split()]
        words += [word for word in found if not _IS_CVE(word)]
        if not words:
            raise WrongName(f"{source} names no module")
    for word in words:
        if not is_module_name(word) or _IS_CVE(word):
            raise WrongName(f"{word!r} is no name of a module; write a rule for a pattern (kmodd-policy(5))")
    return list(dict.fromkeys(word.replace("-", "_") for word in words))


def check_no_alias(modules: Sequence[str], snapshot: Snapshot, loaded: Loaded) -> None:
    """Raise WrongName for a name that is only an alias of other modules.

    `alias NAME off` names no module of the tree; what is loaded is a module though the tree lacks it.
    """

    for name in modules:
        if not snapshot.catalog.has(name) and not loaded.state(name):
            hits = [hit.module for hit in lookup_or_nothing(name, snapshot) if snapshot.catalog.has(hit.module)]
            if hits:
                raise WrongName(f"{name} is an alias of {' '.join(dict.fromkeys(hits))}; name the module")


def absent_from(modules: Sequence[str], snapshot: Snapshot, loaded: Loaded) -> list[str]:
    """Return a sentence for each name that is of no module, which may be a mistake."""
    away = [name for name in modules if not snapshot.catalog.has(name) and not loaded.state(name)]
    known = [*map(str, snapshot.catalog.names())] if away else []
    return [f"This kernel's tree has no module {name}{hint(name, known)}" for name in away]


def whom_of(text: str, root: str) -> tuple[Condition, ...]:
    """Return the condition for a user or unit, none for all. Raises ValueError for an unknown user or invalid unit.

    That for a user has her subordinate uids, too, which programs in a namespace can have, as in a rootless container.
    A name with the suffix of a unit that has processes is one, systemd.unit(5); a user's name may have a dot as well.
    """
    if text == "all":
        return ()
    if text.rpartition(".")[2] not in _UNIT_TYPES:
        uid = uid_of(text, root)
        return (Condition("uid", (str(uid), *subordinate_uids(uid, root))),)
    if not re.fullmatch(r"[A-Za-z0-9:_.\\@-]{1,255}", text, re.ASCII) or text.startswith("."):
        raise ValueError(f"invalid name of a unit {text!r}; write a rule for a pattern (kmodd-policy(5))")
    return (Condition("unit", (text.replace("\\", "\\\\"),)),)


def check_options(given: Given) -> None:
    """Raise ValueError for an option that is given twice, of which only the last would count."""
    for name, values in given.values.items():
        if len(values) > 1 and any(values):
            raise ValueError(f"--{name} is given twice; call the command once for each")


def edits_of(root: str, local: Edit, temporary: Edit) -> tuple[Edit, ...]:
    """Return the edits of policy.d with that of DENY_FILE, which follows from the local file. Raises EditError."""
    before = read_text(root, DENY_FILE)
    return local, temporary, Edit(DENY_FILE, before, modprobe_lines(before, denied_to_all(local.after)))


def show(edits: Sequence[Edit]) -> None:
    """Print the differences that edits make."""
    sys.stdout.flush()
    for edit in edits:
        lines = difflib.unified_diff(
            edit.before.splitlines(), edit.after.splitlines(), edit.path, edit.path, n=1, lineterm=""
        )
        sys.stdout.buffer.write(encode("".join(f"{_shown(line)}\n" for line in lines)))
    sys.stdout.flush()


def _shown(line: str) -> str:
    return "\t".join(map(printable, line.split("\t")))


def carry_out(root: str, prepare: Callable[[], tuple[Edit, ...]], *, is_dry: bool) -> tuple[tuple[Edit, ...], bool]:
    """Write the files, that of modprobe.d first, as it holds without kmodd; nothing in a dry run.

    prepare: reads the files and returns the edits; other calls of the verbs wait meanwhile. Returns the edits, and
    whether they change something. Raises EditError; the files are then as before, or it names those that are not.
    """
    if root and not os.path.isdir(root):  # which would be made, with rules that no machine reads
        raise EditError(f"no directory {root}")
    with contextlib.nullcontext() if is_dry else locked(root):
        edits = prepare()
        if not is_dry:
            write_all(root, tuple(reversed(edits)))
    return edits, any(edit.before != edit.after for edit in edits)


def reload(socket: str, verb: Verb) -> bool:
    """Have the daemon read its rules; return whether it runs."""
    try:
        for problem in call("Reload", socket)["problems"]:
            verb.complain(f"Ignored: {problem}")
    except NotRunning:
        return False
    except Refused as refused:
        verb.complain(f"Failed to reload: {refused.parameters.get('message', refused)}")
    return True


def hidden_by(root: str, edits: Sequence[Edit]) -> tuple[str, ...]:
    """Return the files that are no longer read, as an edit makes one of the same name in a directory before theirs."""
    directories = {DENY_FILE: CONFIG_DIRS, LOCAL: _POLICY_DIRS, TEMPORARY: _POLICY_DIRS}
    found = []
    for edit in edits:
        if edit.before or not edit.after:
            continue
        folder, name = os.path.split(edit.path)
        later = directories[edit.path][directories[edit.path].index(folder) + 1 :]
        found += [f"{each}/{name}" for each in later if os.path.lexists(f"{root}{each}/{name}")]
    # /lib is a link to /usr/lib
    return tuple({os.path.realpath(root + path): path for path in reversed(found)}.values())


# ── decisions ────────────────────────────────────────────────────────────────────────────────────────────────────────


def rules_after(root: str, edits: Sequence[Edit]) -> tuple[Rule, ...]:
    """Return the rules of policy.d below root as they are after the edits."""
    texts = {edit.path: edit.after for edit in edits}
    found: dict[str, list[Rule]] = {}
    for rule in rules_in_force(read_rules(root), None):
        found.setdefault(rule.at.file, []).append(rule)
    is_masked = os.path.lexists(f"{root}{os.path.dirname(LOCAL)}/{os.path.basename(TEMPORARY)}")
    for path in (LOCAL,) if is_masked else (LOCAL, TEMPORARY):
        if path in texts:
            found[path] = list(policy_d.parse([ConfFile(path, texts[path])]).rules)
    ordered = sorted(found.items(), key=lambda item: os.path.basename(item[0]))
    return tuple(rule for _, rules in ordered for rule in rules)


@dataclass(frozen=True, slots=True)
class Moment:
    """The time of a decision."""

    flags: frozenset[str]
    """Flags of policy.d that are set."""
    uptime: float
    """Seconds since boot, suspend included."""


def decisions_of(
    policy: Policy, module: str, requests: Iterable[str], whom: tuple[Condition, ...], now: Moment
) -> Iterator[PolicyDecision]:
    """Yield the decision about a module for each kind of process that `whom` stands for, by each request for it.

    requests: names by which it can come: its own, and its aliases.
    """
    for request in requests:
        for origin, process in _askers(whom):
            asked = PolicyQuery(origin, request, "running", requester=process, flags=now.flags, uptime=now.uptime)
            yield policy.judge(asked, module)


def _askers(whom: tuple[Condition, ...]) -> Iterator[tuple[Origin, Requester | None]]:
    """Yield each kind of process that `whom` stands for, and devices if that is all."""
    if not whom:
        yield "uevent", None
        for process in ASKERS.values():
            yield "request", process
        yield "operator", ASKERS["root"]
        return
    for value in whom[0].wanted:
        if whom[0].key == "uid":
            yield "request", _process(int(value.partition("-")[0]), "session-1.scope")
        else:
            for uid in (0, 101):
                yield "request", _process(uid, value.replace("\\\\", "\\"))


def _process(uid: int, unit: str) -> Requester:
    return Requester(0, "", "", uid, None, "", unit, container=False)


def policy_after(root: str, mode: Mode, edits: Sequence[Edit]) -> Policy:
    """Return the policy as it is after the edits."""
    return Policy(mode, rules_after(root, edits))
