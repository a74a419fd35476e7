"""`kmodd policy`: check policy.d for mistakes, test a request against it, or suggest rules."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import datetime

from kmodd.cli.explain import place_of, question_of
from kmodd.cli.verb import KERNEL, ROOT, Given, Option, Verb
from kmodd.config.policy_d import NONE, PHASES, WORDS
from kmodd.dataclass import replace
from kmodd.errors import NoTree
from kmodd.host.config_files import read_flags, read_rules, read_settings
from kmodd.host.journalctl import Query, journal_records
from kmodd.host.tree import Tree
from kmodd.host.users import uid_of
from kmodd.kernel.requester import Requester
from kmodd.names import module_name
from kmodd.planning.plan import Plan, Skip
from kmodd.planning.policy import Policy, PolicyDecision, PolicyQuery
from kmodd.planning.policy_history import Uses, read, suggest
from kmodd.planning.request import ORIGINS, Origin, Request
from kmodd.planning.resolve import options_of, resolve
from kmodd.text import count_of, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from kmodd.config.policy_d import Phase

_SESSION = "session-1.scope"
"""The unit of a logged-in user's processes."""


def _words(condition: str) -> str:
    return ", ".join(WORDS[condition])


CHECK = Verb(
    "policy check",
    "Check the rules of policy.d for mistakes.",
    (ROOT,),
    status=((0, "no mistakes"), (1, "mistakes")),
    examples=(("policy check", "Are there mistakes in the rules of this machine?"),),
)
TEST = Verb(
    "policy test",
    "Show the decision of the rules for each module of REQUEST, loaded or not, as in mode enforce. REQUEST is a name, "
    "alias, modalias or path, as in `kmodd explain`.",
    (
        Option("--as", "requesting user (default: unknown)", "USER"),
        Option("--container", "the process is in a container"),
        Option("--exe", "program of the process", "PATH"),
        Option("--unit", f"systemd unit of the process, {NONE} for none (default: {_SESSION})", "UNIT"),
        Option("--origin", f"{_words('origin')} (default: request for names, uevent for devices)", "ORIGIN"),
        Option("--subsystem", "subsystem of the device (default: prefix of a modalias)", "SUBSYSTEM"),
        Option("--device", "/devices/… path of the device", "PATH"),
        Option("--phase", f"{_words('phase')} (default: running)", "PHASE"),
        Option("--flag", "a flag that is set, repeatable (default: those set now)", "NAME"),
        ROOT, KERNEL,
    ),
    "REQUEST",
    ((0, "allowed"), (1, "denied, blocked, or nothing matches"), (3, "no module tree")),
    (
        ("policy test net-pf-38 --as games", "May a user make the kernel load it?"),
        ("policy test net-pf-38 --as games --unit cups.service", "And a service?"),
    ),
)  # fmt: skip
SUGGEST = Verb(
    "policy suggest",
    "Print rules that allow the kernel requests that succeeded according to the journal, and deny all other requests "
    "by processes.",
    (
        Option("--since", "7d, 12h, or a date (default: all of the journal)", "SPAN"),
        Option("--unit", "suggest rules for processes of this unit only", "UNIT"),
        Option("--from", "records of `journalctl --output=json --all`; - for standard input", "FILE"),
    ),
    status=((0, "done"), (1, "the records cannot be read, or have no request that succeeded")),
    examples=(
        (
            "policy suggest --since 7d > known && cp known /etc/kmodd/policy.d/60-known.conf",
            "Rules for what a week has shown.",
        ),
    ),
)
VERB = Verb(
    "policy",
    "Check, test or suggest rules of policy.d, which say what modules may be loaded for whom. `kmodd policy WORD "
    "--help` has the options of each word.",
    operands="check | test | suggest",
    examples=(
        ("policy check", "Are there mistakes in the rules?"),
        ("policy test net-pf-38 --as games", "What do they decide?"),
        ("policy suggest --since 7d", "Rules for what a week has shown."),
    ),
)
SUBVERBS = {"check": CHECK, "test": TEST, "suggest": SUGGEST}


def main(argv: list[str]) -> int:
    """Run check, test or suggest; return the exit status that its help documents, 2 for wrong usage."""
    match VERB.parse_word(SUBVERBS, argv):
        case int(status):
            return status
        case "check", given:
            return _check(given.get("root"))
        case "test", given:
            return _test(given)
        case _, given:
            return _suggest(given)


def _wrong_test(given: Given) -> str:
    """Return what is wrong with the options of `test`; empty: nothing."""
    if "as" not in given and ({"exe", "container"} & given.values.keys() or given.get("unit", _SESSION) != _SESSION):
        return "--exe, --unit and --container require --as"
    for name in ("origin", "phase"):
        if name in given and given.get(name) not in WORDS[name]:
            return f"invalid --{name} {given.get(name)!r}; expected {_words(name)}"
    try:
        uid_of(given.get("as", "0"), given.get("root").rstrip("/"))
    except ValueError as error:
        return str(error)
    return ""


# ── check ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _check(root: str) -> int:
    parsed = read_rules(root)
    _print("".join(f"{problem.with_caret()}\n" for problem in parsed.problems))
    _complain(f"rules: {len(parsed.rules)}, mistakes: {len(parsed.problems)}")
    return 1 if parsed.problems else 0


# ── test ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _test(given: Given) -> int:
    if wrong := _wrong_test(given):
        return TEST.refuse(wrong)
    root, asked_for = given.get("root"), given.operands[0]
    tree = Tree(root=root, release=given.get("kernel") or None, extensions=read_settings(root).extensions)
    if tree.guessed:
        _complain(f"kernel {tree.release}, the only one below {root}")
    try:
        tree.check()
    except NoTree as error:
        _complain(str(error))
        return 3
    parsed = read_rules(root)
    for problem in parsed.problems:
        _complain(f"Ignoring invalid rule: {problem}")
    snapshot = tree.quick_snapshot()
    question = question_of(asked_for, tree, snapshot)
    if question.why:
        _complain(f"{asked_for} {question.why}")
    is_device = question.kind in ("modalias", "sysfs") or (question.kind == "dev" and question.origin == "coldplug")
    usual: Origin = "uevent" if is_device else "request"
    origin: Origin = next((word for word in ORIGINS if word == given.get("origin")), usual)
    query = _query(given, origin, is_device, tree)
    probe_options = replace(options_of(origin), ignore_loaded=True, foreign=True)
    policy = Policy("enforce", parsed.rules)
    status = 0
    for name in question.names:
        plan = resolve(Request(name, origin), snapshot, tree.loaded(), probe_options, tree.present)
        asked = replace(query, request=name)
        _print(f"{name} {_requester_in_words(asked)}\n" + "".join(_decisions(plan, policy, asked)))
        if _is_denied(plan, policy, asked):
            status = 1
    for problem in snapshot.catalog.problems:
        _complain(str(problem))
    if status == 0 and question.names:
        return 0
    return 3 if snapshot.catalog.is_damaged else 1


def _query(given: Given, origin: Origin, is_device: bool, tree: Tree) -> PolicyQuery:
    """Return the query that the options describe; a /sys path adds its subsystem and device."""
    request = given.operands[0]
    place = place_of(request, tree) if is_device or request.startswith("/sys/") else ("", "")
    subsystem, device = given.get("subsystem") or place[0], given.get("device") or place[1]
    requester = None
    if "as" in given:
        unit = given.get("unit", _SESSION)
        uid, container = uid_of(given.get("as"), tree.root), "container" in given
        requester = Requester(0, "", given.get("exe"), uid, None, "", "" if unit == NONE else unit, container)
    flags = frozenset(given.values["flag"]) if "flag" in given else read_flags(given.get("root"))
    phase: Phase = next((phase for phase in PHASES if phase == given.get("phase")), "running")
    devices = (device,) if device else ()
    uptime = time.clock_gettime(time.CLOCK_BOOTTIME)
    return PolicyQuery(origin, request, phase, subsystem, devices, requester, flags, uptime)


def _requester_in_words(query: PolicyQuery) -> str:
    """Return origin, requester, subsystem and phase in words."""
    words = [f"by {query.origin}"]
    if query.requester:
        words.append(f"of uid {query.requester.uid}{' in a container' if query.requester.container else ''}")
    elif query.origin == "request":
        words.append("of an unknown process")
    if query.subsystem:
        words.append(f"for a device of {query.subsystem}")
    return " ".join([*words, f"in phase {query.phase}"])


def _decisions(plan: Plan, policy: Policy, query: PolicyQuery) -> Iterator[str]:
    """Yield a line per module of the plan."""
    if not plan.goals:
        yield "  no module matches\n"
    for goal in plan.goals:
        for entry in goal.entries:
            if isinstance(entry, Skip):
                yield f"  {'-':6}{entry.module}   {entry.why()}\n"
            else:
                decision = policy.judge(query, entry.module)
                yield f"  {decision.verdict:6}{entry.module}   {_why(decision)}; {entry.because}\n"


def _why(decision: PolicyDecision) -> str:
    return f"{decision.at}: {decision.text}" if decision.at else decision.text or "no rule"


def _is_denied(plan: Plan, policy: Policy, query: PolicyQuery) -> bool:
    """Return whether no module comes, or one that the request requires is refused; softdeps are not required."""
    steps = [entry for goal in plan.goals for entry in goal.entries if entry.required and not isinstance(entry, Skip)]
    comes = any(goal.comes for goal in plan.goals)
    return not comes or any(policy.judge(query, module_name(entry.module)).refused for entry in steps)


# ── suggest ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _suggest(given: Given) -> int:
    try:
        with journal_records(Query(since=given.get("since"), source=given.get("from"))) as lines:
            found = read(lines)
    except OSError as error:
        _complain(f"Failed to read {given.get('from') or 'the journal'}: {error.strerror}")
        return 1
    except subprocess.CalledProcessError:
        return 1  # journalctl has printed the reason
    if found.distrusted:
        _complain(f"Ignoring {count_of(found.distrusted, 'record')} in kmodd's name that root has not written")
    if found.unreadable:
        _complain(f"Ignoring {count_of(found.unreadable, 'line')} without a JSON record")
    unit = given.get("unit")
    rules = suggest(found.uses, unit)
    if not rules:
        where = f" by {unit}" if unit else ""
        _complain(
            f"No kernel request{where} that loaded a module is in these records, so no rule is suggested: it would "
            "deny all of them. The span may be too short, or kmodd did not answer the kernel's requests in it"
        )
        return 1
    _print(_header(found, unit) + rules)
    return 0


def _header(found: Uses, unit: str) -> str:
    """Return a comment that names the records which the rules are derived from."""
    times = sorted(use.usec for use in found.uses if use.usec)
    day = [datetime.fromtimestamp(usec / 1e6).strftime("%Y-%m-%d %H:%M") for usec in (times[:1] + times[-1:])]
    span = f", from {day[0]} to {day[1]}" if day else ""
    units = ", of all units" if unit else ""
    return f"# Requests of the kernel in the journal: {len(found.uses)}{span}{units}\n\n"


def _print(text: str) -> None:
    sys.stdout.buffer.write(encode(text))
    sys.stdout.flush()


def _complain(text: str) -> None:
    line = f"kmodd policy: {text}\n"
    print(line.encode("utf-8", "backslashreplace").decode(), end="", file=sys.stderr)
