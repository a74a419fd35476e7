"""`kmodd policy`: look for mistakes in policy.d, ask what it says to a request, have rules suggested."""

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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_SESSION = "session-1.scope"
"""Where a process of somebody who is logged in is."""


def main(argv: list[str]) -> int:
    """One of check, test, suggest; exit as their help says, 2 for a wrong call."""
    parser = _parser()
    options = parser.parse_args(argv)
    if (
        options.word == "test"
        and options.uid is None
        and (options.exe or options.container or options.unit != _SESSION)
    ):
        parser.error("--exe, --unit and --container need --as: whose process is it?")
    match options.word:
        case "check":
            return _check(options.root)
        case "test":
            return _test(options)
        case _:
            return _suggest(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("kmodd policy", description="The rules of policy.d: what may be loaded for whom.")
    words = parser.add_subparsers(dest="word", required=True, metavar="check | test | suggest")
    check = words.add_parser("check", help="look for mistakes", epilog="Exit status: 0 no mistakes, 1 some.")
    check.add_argument("--root", default="", metavar="DIR", help="prefix of every path")
    _test_parser(words.add_parser(
        "test",
        help="what the rules make of a request",
        description="Say what the rules make of each module that REQUEST brings in, whatever the kernel has by now, "
        "as in mode enforce.",
        epilog="Exit status: 0 it is allowed, 1 it is denied or nothing matches, 3 no module tree.",
    ))  # fmt: skip
    offer = words.add_parser(
        "suggest",
        help="write rules out of experience",
        description="Write rules that allow what the kernel was asked for and got, by the journal, and refuse all else "
        "that a process makes it ask for.",
    )
    offer.add_argument("--since", metavar="SPAN", help="7d, 12h, or a date (default: all of the journal)")
    offer.add_argument("--unit", default="", help="for what the processes of this unit asked for, and for them alone")
    offer.add_argument(
        "--from",
        dest="source",
        metavar="FILE",
        help="records of `journalctl --output=json --all`; - for standard input",
    )
    return parser


def _test_parser(test: argparse.ArgumentParser) -> None:
    test.add_argument("request", metavar="REQUEST", help="as of `kmodd explain`: a name, alias, modalias or path")
    test.add_argument("--as", dest="uid", type=_uid, metavar="USER", help="who asks (default: nobody knows)")
    test.add_argument("--container", action="store_true", help="in a container")
    test.add_argument("--exe", default="", metavar="PATH", help="with this program")
    test.add_argument("--unit", default=_SESSION, help="in this systemd unit, - for none (default: %(default)s)")
    test.add_argument("--origin", choices=WORDS["origin"], help="(default: request for names, uevent for devices)")
    test.add_argument("--subsystem", help="the device's (default: the beginning of a modalias)")
    test.add_argument("--device", metavar="PATH", help="the device's /devices/… path")
    test.add_argument("--phase", choices=WORDS["phase"], default="running", help="(default: running)")
    test.add_argument("--flag", action="append", metavar="NAME", help="a flag that is set (default: those that are)")
    test.add_argument("--root", default="", metavar="DIR", help="prefix of every path")
    test.add_argument("--kernel", metavar="RELEASE", help="kernel release (default: the running one)")


def _uid(text: str) -> int:
    """A user's number or name. Raises ArgumentTypeError."""
    try:
        uid = int(text) if text.isdecimal() else pwd.getpwnam(text).pw_uid
    except KeyError:
        raise argparse.ArgumentTypeError(f"no user {text!r}") from None
    if uid > MAX_UID:
        raise argparse.ArgumentTypeError(f"no user has the number {uid}")
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
        _complain(f"not counted: {problem}")
    snapshot = tree.quick_snapshot()
    question = question_of(options.request, tree, snapshot)
    is_device = question.kind in ("modalias", "sysfs") or (question.kind == "dev" and question.origin == "coldplug")
    origin: Origin = options.origin or ("uevent" if is_device else "request")
    asking = _asking(options, origin, is_device, tree)
    probe_options = replace(options_of(origin), ignore_loaded=True)
    policy = Policy("enforce", parsed.rules)
    status = 0
    for name in question.names:
        plan = resolve(Request(name, origin), snapshot, tree.loaded(), probe_options, tree.present)
        asked = replace(asking, request=name)
        _print(f"{name} {_whose(asked)}\n" + "".join(_verdicts(plan, policy, asked)))
        if _is_denied(plan, policy, asked):
            status = 1
    return status if question.names else 1


def _asking(options: argparse.Namespace, origin: Origin, is_device: bool, tree: Tree) -> PolicyQuery:
    """The asking that the options describe; a device of /sys describes itself."""
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


def _whose(asking: PolicyQuery) -> str:
    """Who asks, in words."""
    words = [f"by {asking.origin}"]
    if asking.requester:
        words.append(f"of uid {asking.requester.uid}{' in a container' if asking.requester.container else ''}")
    elif asking.origin == "request":
        words.append("of nobody knows whom")
    if asking.subsystem:
        words.append(f"for a device of {asking.subsystem}")
    return " ".join([*words, f"in phase {asking.phase}"])


def _verdicts(plan: Plan, policy: Policy, asking: PolicyQuery) -> Iterator[str]:
    """A line for each module of the plan."""
    if not plan.goals:
        yield "  no module matches\n"
    for goal in plan.goals:
        for entry in goal.entries:
            if isinstance(entry, Skip):
                yield f"  {'-':6}{entry.module}   {entry.why()}\n"
            else:
                judgement = policy.judge(asking, entry.module)
                yield f"  {judgement.verdict:6}{entry.module}   {_why(judgement)}; {entry.because}\n"


def _why(judgement: PolicyDecision) -> str:
    return f"{judgement.at}: {judgement.text}" if judgement.at else judgement.text or "no rule"


def _is_denied(plan: Plan, policy: Policy, asking: PolicyQuery) -> bool:
    """Whether nothing matches, or something that the request needs is refused; a softdep is not needed."""
    needed = [entry for goal in plan.goals for entry in goal.entries if entry.required and not isinstance(entry, Skip)]
    return not plan.goals or any(policy.judge(asking, module_name(entry.module)).refused for entry in needed)


# ── suggest ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _suggest(options: argparse.Namespace) -> int:
    try:
        with journal_records(options.source, options.since) as lines:
            found = read(lines)
    except OSError as error:
        _complain(f"{options.source or 'journalctl'}: {error.strerror}")
        return 1
    except subprocess.CalledProcessError:
        return 1  # journalctl has said why
    if found.distrusted:
        _complain(f"left out: {found.distrusted} records in kmodd's name that root did not write")
    if found.unreadable:
        _complain(f"left out: {found.unreadable} lines that are no records in JSON")
    if not found.uses:
        _complain("the journal has no request of the kernel; too short a span, or mode off?")
    _print(_header(found, options.unit) + suggest(found.uses, options.unit))
    return 0


def _header(found: Uses, unit: str) -> str:
    """What the rules were made of, as a comment."""
    times = sorted(use.usec for use in found.uses if use.usec)
    day = [datetime.fromtimestamp(usec / 1e6).strftime("%Y-%m-%d %H:%M") for usec in (times[:1] + times[-1:])]
    span = f", from {day[0]} to {day[1]}" if day else ""
    whose = ", of all units" if unit else ""
    return f"# Requests of the kernel in the journal: {len(found.uses)}{span}{whose}\n\n"


def _print(text: str) -> None:
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
    sys.stdout.flush()


def _complain(text: str) -> None:
    line = f"kmodd policy: {text}\n"
    print(line.encode("utf-8", "backslashreplace").decode(), end="", file=sys.stderr)
