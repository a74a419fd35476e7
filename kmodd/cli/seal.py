"""`kmodd seal`: refuse from now on what no rule allows, see beforehand what that is, or shut the kernel for good."""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from collections import Counter

from kmodd.cli.client import NotRunning, Refused, call
from kmodd.errors import NoTree
from kmodd.host.config_files import read_flags, read_rules, read_settings
from kmodd.host.journal import open_journal
from kmodd.host.journalctl import journal_records
from kmodd.host.kernel_facts import MODULES_DISABLED
from kmodd.host.paths import CONTROL_SOCKET
from kmodd.host.proc_modules import read_loaded
from kmodd.host.tree import Tree
from kmodd.planning.policy import Policy
from kmodd.planning.policy_history import sealed_asking
from kmodd.planning.record import INFO, NOTICE, SEAL, Record


def main(argv: list[str]) -> int:
    """Exit 0: done; 1: not done, or the seal would refuse something; 7: the daemon is not running."""
    parser = argparse.ArgumentParser(
        "kmodd seal",
        description="Load nothing from now on but what a rule of policy.d allows. Without an option, and with --undo, "
        "kmodd does it, until the next boot.",
    )
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--rehearse", action="store_true", help="say what a seal would have refused since boot")
    ways.add_argument("--undo", action="store_true", help="take the seal back")
    ways.add_argument(
        "--permanent", action="store_true",
        help="once all devices are answered and the modules of SealRequires= are live, have the kernel itself load "
        "nothing until the next boot (kernel.modules_disabled=1)",
    )  # fmt: skip
    parser.add_argument("--timeout", type=float, default=120, metavar="SEC", help="for --permanent (default: 120)")
    parser.add_argument("--socket", default=CONTROL_SOCKET, help="control socket (default %(default)s)")
    options = parser.parse_args(argv)
    try:
        if options.rehearse:
            return _rehearse()
        if options.permanent:
            return _permanent(options.socket, options.timeout)
        call("Seal", options.socket, sealed=not options.undo)
    except NotRunning as error:
        print(f"kmodd seal: {error}", file=sys.stderr)
        return 7
    except (Refused, OSError, subprocess.CalledProcessError) as error:
        print(f"kmodd seal: {error}", file=sys.stderr)
        return 1
    return 0


def _rehearse() -> int:
    """Judge what the journal shows was loaded since boot as if the seal had been on. The answer is the exit status."""
    parsed = read_rules("")
    for problem in parsed.problems:
        print(f"kmodd seal: not counted: {problem}", file=sys.stderr)
    policy, flags = Policy("enforce", parsed.rules), read_flags("")
    refused: Counter[str] = Counter()
    unreadable = 0
    with journal_records(None, None, boot=True) as lines:
        for line in lines:
            record = _record(line)
            unreadable += record is None
            found = sealed_asking(record or {}, flags)
            if found and policy.judge(*found).refused:
                asking, module = found
                refused[f"{module} by {asking.origin}: {asking.request}"] += 1
    if unreadable:
        print(f"kmodd seal: left out: {unreadable} lines that are no records in JSON", file=sys.stderr)
    for what, count in sorted(refused.items()):
        print(f"{what}{f', {count} times' if count > 1 else ''}")
    print(f"kmodd seal: {len(refused)} kinds of loads since boot would have been refused", file=sys.stderr)
    return 1 if refused else 0


def _record(line: str) -> dict[str, object] | None:
    with contextlib.suppress(ValueError):
        record = json.loads(line)
        return record if isinstance(record, dict) else None
    return None


def _builtin(names: list[str]) -> set[str]:
    """Those that are a part of the kernel; nobody knows where it has no module tree."""
    try:
        catalog = Tree().snapshot().catalog
    except NoTree:
        return set()
    return {name for name in names if catalog.is_builtin(name)}


def _permanent(socket: str, seconds: float) -> int:
    """Wait until nothing is under way, see that all that is required is there, and shut the kernel."""
    call("Settle", socket, timeout_usec=int(seconds * 1e6))
    loaded = read_loaded()
    required = [name.replace("-", "_") for name in read_settings("").seal_requires]
    absent = [name for name in required if loaded.state(name) != "live"]
    builtin = _builtin(absent) if absent else set()
    missing = [name for name in absent if name not in builtin]
    if missing:
        print(f"kmodd seal: not sealed, for these are required and not live: {' '.join(missing)}", file=sys.stderr)
        return 1
    with open(MODULES_DISABLED, "w") as file:
        file.write("1")
    journal = open_journal(under_systemd=True, lowest=INFO)
    journal.write(Record(SEAL, NOTICE, "kernel.modules_disabled=1: no module is loaded until the next boot"))
    journal.close()
    return 0
