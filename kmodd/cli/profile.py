"""`kmodd profile`: write what modules this machine uses, as rules or a list, and test such a profile by the history."""

from __future__ import annotations

import json
import time

from kmodd.cli.daemon_tree import tree_for
from kmodd.cli.journal_options import DIRECTORY, query_of, read_entries
from kmodd.cli.terminal import show, table
from kmodd.cli.verb import JSON, ROOT, Given, Option, Verb
from kmodd.dataclass import replace
from kmodd.errors import NoTree
from kmodd.host.asking_devices import asked_by_devices
from kmodd.host.journalctl import is_volatile
from kmodd.host.regular_files import read_given
from kmodd.names import module_of_path
from kmodd.planning.plan import Skip
from kmodd.planning.policy_history import uses_of
from kmodd.planning.profile import (
    DAY,
    FORMS,
    first_record,
    is_load,
    is_usual,
    loads_of,
    parse,
    profile_of,
    refusals,
    text_of,
)
from kmodd.planning.resolve import options_of, resolve
from kmodd.text import count_of, decode, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kmodd.host.tree import Tree
    from kmodd.index.catalog import Snapshot
    from kmodd.planning.history import Entry
    from kmodd.planning.profile import Profile, Refusal

_DAYS = "30"
_MOST = 3650
_SHOWN = 10
"""Invalid lines of a file that are named."""
MAKE = Verb(
    "profile make",
    "Print the modules that this machine uses: those that the history of some days has, those that are loaded, those "
    "that its devices ask for, and all that these need. As rules of policy.d (the default), devices and the boot list "
    "get these modules, processes what they have made the kernel load, and operators everything. Modules that the "
    "tree of this kernel does not have are left out.\n\n"
    "A history that is shorter, or that has no load in these days, is refused, as it would leave out what is seldom "
    "used. It begins with the first record of the daemon; those of tools do not count.",
    (
        Option("--days", f"days of the history (default: {_DAYS})", "NUMBER"),
        Option("--format", f"{', '.join(FORMS)} (default: {FORMS[0]})", "FORMAT"),
        Option("--force", "use a history that is empty or shorter"),
        JSON, DIRECTORY, ROOT,
    ),
    status=((0, "done"), (1, "the history is too short, or cannot be read"), (3, "no module tree, or a damaged index")),
    examples=(
        ("profile make > used && cp used /etc/kmodd/policy.d/60-profile.conf", "Rules for what a month has shown."),
        ("profile make --format lsmod > used && make LSMOD=used localmodconfig", "A kernel for this machine."),
        ("profile make --format dracut > used && cp used /etc/dracut.conf.d/used.conf", "An initrd with these."),
    ),
)  # fmt: skip
TEST = Verb(
    "profile test",
    "Show what the profile in FILE would have refused of the loads of some days, for whom and how often. FILE is of "
    "any format of `kmodd profile make`, or - for standard input; a list of modules allows these alone.",
    (
        Option("--days", f"days of the history (default: {_DAYS})", "NUMBER"),
        JSON, DIRECTORY, ROOT,
    ),
    "FILE",
    ((0, "it would have refused nothing"), (1, "it would have refused a load, or FILE or history cannot be used")),
    (("profile test --days 90 /etc/kmodd/policy.d/60-profile.conf", "Who would miss what?"),),
)  # fmt: skip
VERB = Verb(
    "profile",
    "Write what modules this machine uses, as rules or a list for other tools, or test such a profile by the history. "
    "`kmodd profile WORD --help` has the options of each word.",
    operands="make | test",
    examples=(
        ("profile make > used && cp used /etc/kmodd/policy.d/60-profile.conf", "Rules for what a month has shown."),
        ("profile test --days 90 /etc/kmodd/policy.d/60-profile.conf", "Who would miss what?"),
    ),
)
SUBVERBS = {"make": MAKE, "test": TEST}


def main(argv: list[str]) -> int:
    """Run make or test; return the exit status that its help documents, 2 for wrong usage."""
    parsed = VERB.parse_word(SUBVERBS, argv)
    if isinstance(parsed, int):
        return parsed
    word, given = parsed
    text = given.get("days", _DAYS)
    if not (text.isascii() and text.isdecimal() and 0 < int(text[:9]) <= _MOST):
        return SUBVERBS[word].refuse(f"invalid --days {text!r}; expected a number from 1 to {_MOST}")
    return _make(given, int(text)) if word == "make" else _test(given, int(text))


def _entries(verb: Verb, given: Given, days: int) -> tuple[list[Entry] | None, str]:
    """Return the entries of the last days, and why the history is shorter; empty: it is not. None: after a message."""
    entries = read_entries(verb, query_of(given))
    if entries is None:
        return None, ""
    first, now = first_record(entries), round(time.time() * 1e6)
    recent = [entry for entry in entries if entry.realtime >= now - days * DAY]
    if not first:
        return recent, "the journal has no record of kmodd"
    if first <= now - days * DAY:
        return recent, "" if any(map(is_load, recent)) else f"no load is on record of the last {count_of(days, 'day')}"
    memory = ", which is kept in memory only," if not query_of(given).directory and is_volatile() else ""
    age = f"less than {count_of(days, 'day')} ago"
    return recent, f"the first record of kmodd in the journal{memory} is of {_when(first)}, {age}"


# ── make ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _make(given: Given, days: int) -> int:
    form = next((form for form in FORMS if form == given.get("format", FORMS[0])), None)
    if form is None:
        return MAKE.refuse(f"invalid --format {given.get('format')!r}; expected {', '.join(FORMS)}")
    if "json" in given and "format" in given:
        return MAKE.refuse("--json and --format exclude each other")
    entries, why = _entries(MAKE, given, days)
    if entries is None:
        return 1
    if why and "force" not in given:
        MAKE.complain(f"{why}: what is used less often would be missing; wait, or use other --days or --force")
        return 1
    tree = tree_for(given.get("root").rstrip("/"), None)
    try:
        tree.check()
    except NoTree as error:
        MAKE.complain(str(error))
        return 3
    snapshot = tree.quick_snapshot()
    profile = _profile(entries, tree, snapshot)
    if snapshot.catalog.is_damaged:
        for problem in snapshot.catalog.problems:
            MAKE.complain(str(problem))
        return 3
    if not profile.modules:
        MAKE.complain("no module is used, so there is no profile")
        return 1
    if "json" in given:
        objects = ({"module": name, "needs": list(needs)} for name, needs in profile.modules.items())
        show("".join(f"{json.dumps(each)}\n" for each in objects))
        return 0
    day = time.strftime("%Y-%m-%d")
    title = f"kmodd profile of {day}, kernel {printable(tree.release)}, {count_of(days, 'day')} of history"
    show(text_of(profile, form, f"{title}{f' ({why})' if why else ''}", tree.loaded().modules))
    return 0


def _profile(entries: Sequence[Entry], tree: Tree, snapshot: Snapshot) -> Profile:
    """Return the profile of this machine, after a message for modules that its tree lacks."""
    catalog = snapshot.catalog
    lines = {str(name): catalog.dep(name) for name in catalog.names()}
    all_needs = {name: tuple(map(module_of_path, line.deps)) for name, line in lines.items() if line}
    needs = {name: tuple(filter(is_usual, those)) for name, those in all_needs.items() if is_usual(name)}
    live = {str(name) for name, module in tree.loaded().modules.items() if module.state != "going"}
    history = loads_of(entries)
    used = live | history
    away = sorted(name for name in used if name not in all_needs and not catalog.is_builtin(name))
    if unusual := sorted(name for name in used if name in all_needs and name not in needs):
        MAKE.complain(f"Left out, as other programs may not take these for names: {' '.join(unusual)}")
    if away:
        MAKE.complain(f"Left out, as they are not in the tree of {tree.release}: {' '.join(away)}")
    return profile_of(
        {"history": history, "loaded": live, "devices": _of_devices(tree, snapshot)}, needs, uses_of(entries)
    )


def _of_devices(tree: Tree, snapshot: Snapshot) -> set[str]:
    """Return the modules that this machine's devices would bring, loaded or not."""
    loaded, options = tree.loaded(), replace(options_of("coldplug"), ignore_loaded=True)
    found: set[str] = set()
    for _, requests in asked_by_devices(tree.root):
        for request in requests:
            plan = resolve(request, snapshot, loaded, options, tree.present, foreign=tree.foreign)
            entries = (entry for goal in plan.goals for entry in goal.entries)
            found |= {str(entry.module) for entry in entries if not isinstance(entry, Skip)}
    return found


# ── test ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _test(given: Given, days: int) -> int:
    path = given.operands[0]
    try:
        text = decode(read_given(0 if path == "-" else path))
    except OSError as error:
        TEST.complain(f"Failed to read {path}: {error.strerror}")
        return 1
    rules, problems = parse(text, path)
    if not rules:
        TEST.complain(str(min(problems, key=lambda problem: problem.at.line)))  # that of the file, else the first
        return 1
    for problem in problems[:_SHOWN]:
        TEST.complain(f"Ignoring invalid line: {problem}")
    if len(problems) > _SHOWN:
        TEST.complain(f"Ignoring {count_of(len(problems) - _SHOWN, 'more invalid line')}")
    entries, why = _entries(TEST, given, days)
    if entries is None:
        return 1
    if not any(map(is_load, entries)):
        TEST.complain(f"{why}, so nothing is tested")
        return 1
    if why:
        TEST.complain(why)
    found = refusals(entries, rules)
    if found and "json" in given:
        show("".join(f"{json.dumps(_object(each))}\n" for each in found))
    elif found:
        rows = [[str(each.times), each.module, each.whom, _when(each.last), each.rule] for each in found]
        show(table(["TIMES", "MODULE", "FOR", "LAST", "RULE"], rows, [4, 2]))
    loads = sum(map(is_load, entries))
    refused = sum(each.times for each in found)
    TEST.complain(f"{count_of(loads, 'load')} on record; modules that the profile would have refused: {refused}")
    return int(bool(found or problems))


def _object(each: Refusal) -> dict[str, object]:
    """Return a refusal as JSON values."""
    return {
        "module": each.module, "for": each.whom, "times": each.times, "last_usec": each.last, "rule": each.rule,
    }  # fmt: skip


def _when(usec: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(usec / 1e6))
