"""`kmodd policy`: check policy.d for mistakes, test a request against it, or suggest rules."""

from __future__ import annotations

import argparse
import os
import pwd
import subprocess
import sys
from datetime import datetime

from kmodd.cli.explain import question_of
from kmodd.config.policy_d import MAX_UID, NONE, WORDS
from kmodd.dataclass import replace
from kmodd.errors import NoTree
from kmodd.host.config_files import read_flags, read_rules, read_settings
from kmodd.host.journalctl import journal_records
from kmodd.host.tree import Tree
from kmodd.kernel.requester import Requester
from kmodd.names import module_name
from kmodd.planning.plan import Plan, Skip
from kmodd.planning.policy import Policy, PolicyDecision, PolicyQuery
from kmodd.planning.policy_history import Uses, read, suggest
from kmodd.planning.request import Origin, Request
from kmodd.planning.resolve import options_of, resolve
from kmodd.text import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_SESSION = "session-1.scope"
"""The unit of a logged-in user's processes."""


def main(argv: list[str]) -> int:
    """Run check, test or suggest; return the exit status that its help documents, 2 for wrong usage."""
    parser = _parser()
    options = parser.parse_args(argv)
    if (
        options.word == "test"
        and options.uid is None
        and (options.exe or options.container or options.unit != _SESSION)
    ):
        parser.error("--exe, --unit and --container require --as")
    match options.word:
        case "check":
            return _check(options.root)
        case "test":
            return _test(options)
        case _:
            return _suggest(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("kmodd policy", description="Check, test or suggest rules of policy.d.")
    words = parser.add_subparsers(dest="word", required=True, metavar="check | test | suggest")
    check = words.add_parser("check", help="check for mistakes", epilog="Exit status: 0 no mistakes, 1 mistakes.")
    check.add_argument("--root", default="", metavar="DIR", help="prefix of all paths")
    _test_parser(words.add_parser(
        "test",
        help="test a request against the rules",
        description="Show the decision of the rules for each module of REQUEST, loaded or not, as in mode enforce.",
        epilog="Exit status: 0 allowed, 1 denied or nothing matches, 3 no module tree.",
    ))  # fmt: skip
    offer = words.add_parser(
        "suggest",
        help="suggest rules from the journal",
        description="Print rules that allow the kernel requests that succeeded according to the journal, and deny all "
        "other requests by processes.",
    )
    offer.add_argument("--since", metavar="SPAN", help="7d, 12h, or a date (default: all of the journal)")
    offer.add_argument("--unit", default="", help="suggest rules for processes of this unit only")
    offer.add_argument(
        "--from",
        dest="source",
        metavar="FILE",
        help="records of `journalctl --output=json --all`; - for standard input",
    )
    return parser


def _test_parser(test: argparse.ArgumentParser) -> None:
    test.add_argument("request", metavar="REQUEST", help="name, alias, modalias or path, as in `kmodd explain`")
    test.add_argument("--as", dest="uid", type=_uid, metavar="USER", help="requesting user (default: unknown)")
    test.add_argument("--container", action="store_true", help="the process is in a container")
    test.add_argument("--exe", default="", metavar="PATH", help="program of the process")
    test.add_argument("--unit", default=_SESSION, help="systemd unit of the process, - for none (default: %(default)s)")
    test.add_argument("--origin", choices=WORDS["origin"], help="(default: request for names, uevent for devices)")
    test.add_argument("--subsystem", help="subsystem of the device (default: prefix of a modalias)")
    test.add_argument("--device", metavar="PATH", help="/devices/… path of the device")
    test.add_argument("--phase", choices=WORDS["phase"], default="running", help="(default: running)")
    test.add_argument("--flag", action="append", metavar="NAME", help="a flag that is set (default: those set now)")
    test.add_argument("--root", default="", metavar="DIR", help="prefix of all paths")
    test.add_argument("--kernel", metavar="RELEASE", help="kernel release (default: the running one)")


def _uid(text: str) -> int:
    """Return the uid of a user's number or name. Raises ArgumentTypeError."""
    try:
        uid = int(text) if text.isdecimal() else pwd.getpwnam(text).pw_uid
    except KeyError:
        raise argparse.ArgumentTypeError(f"unknown user {text!r}") from None
    if uid > MAX_UID:
        raise argparse.ArgumentTypeError(f"uid {uid} out of range")
    return uid


# ── check ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _check(root: str) -> int:
    parsed = read_rules(root)
    _print("".join(f"{problem.with_caret()}\n" for problem in parsed.problems))
    _complain(f"rules: {len(parsed.rules)}, mistakes: {len(parsed.problems)}")
    return 1 if parsed.problems else 0


# ── test ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _test(options: argparse.Namespace) -> int:
    tree = Tree(root=options.root, release=options.kernel, extensions=read_settings(options.root).extensions)
    if tree.guessed:
        _complain(f"kernel {tree.release}, the only one below {options.root}")
    try:
        tree.check()
    except NoTree as error:
        _complain(str(error))
        return 3
    parsed = read_rules(options.root)
    for problem in parsed.problems:
        _complain(f"Ignoring invalid rule: {problem}")
    snapshot = tree.quick_snapshot()
    question = question_of(options.request, tree, snapshot)
    is_device = question.kind in ("modalias", "sysfs") or (question.kind == "dev" and question.origin == "coldplug")
    origin: Origin = options.origin or ("uevent" if is_device else "request")
    query = _query(options, origin, is_device, tree)
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


def _query(options: argparse.Namespace, origin: Origin, is_device: bool, tree: Tree) -> PolicyQuery:
    """Return the query that the options describe; a /sys path adds its subsystem and device."""
    subsystem, device = options.subsystem or "", options.device or ""
    path = os.path.realpath(tree.real(options.request)) if options.request.startswith("/sys/") else ""
    if path:
        device = device or path.removeprefix(os.path.realpath(tree.real("/sys")))
        subsystem = subsystem or os.path.basename(os.path.realpath(f"{path}/subsystem"))
    elif is_device:
        subsystem = subsystem or options.request.partition(":")[0]
    requester = None
    if options.uid is not None:
        unit = "" if options.unit == NONE else options.unit
        requester = Requester(0, "", options.exe, options.uid, None, "", unit, options.container)
    flags = read_flags(options.root) if options.flag is None else frozenset(options.flag)
    devices = (device,) if device else ()
    return PolicyQuery(origin, options.request, options.phase, subsystem, devices, requester, flags)


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
    """Return whether nothing matches, or a module that the request requires is refused; softdeps are not required."""
    steps = [entry for goal in plan.goals for entry in goal.entries if entry.required and not isinstance(entry, Skip)]
    return not plan.goals or any(policy.judge(query, module_name(entry.module)).refused for entry in steps)


# ── suggest ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _suggest(options: argparse.Namespace) -> int:
    try:
        with journal_records(options.source, options.since) as lines:
            found = read(lines)
    except OSError as error:
        _complain(f"Failed to read {options.source or 'the journal'}: {error.strerror}")
        return 1
    except subprocess.CalledProcessError:
        return 1  # journalctl has printed the reason
    if found.distrusted:
        _complain(f"Ignoring {found.distrusted} records in kmodd's name that were not written by root")
    if found.unreadable:
        _complain(f"Ignoring {found.unreadable} lines that are not JSON records")
    if not found.uses:
        _complain("No kernel requests found in the journal; the span may be too short, or the policy mode off")
    _print(_header(found, options.unit) + suggest(found.uses, options.unit))
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
