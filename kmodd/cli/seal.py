"""`kmodd seal`: refuse modules that no rule allows, rehearse that, or disable module loading in the kernel."""

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
from kmodd.host.journal import JournalSocket
from kmodd.host.journalctl import journal_records
from kmodd.host.kernel_facts import MODULES_DISABLED
from kmodd.host.paths import CONTROL_SOCKET
from kmodd.host.proc_modules import read_loaded
from kmodd.host.tree import Tree
from kmodd.planning.policy import Policy
from kmodd.planning.policy_history import sealed_asking
from kmodd.planning.record import NOTICE, SEAL, Record


def main(argv: list[str]) -> int:
    """Return 0 on success, 1 on failure or if a rehearsed seal refuses a load, 7 if the daemon is not running."""
    parser = argparse.ArgumentParser(
        "kmodd seal",
        description="Refuse modules that no rule of policy.d allows. Without --permanent, the daemon enforces the "
        "seal, until --undo or the next boot.",
    )
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--rehearse", action="store_true", help="show what a seal would have refused since boot")
    ways.add_argument("--undo", action="store_true", help="lift the seal")
    ways.add_argument(
        "--permanent", action="store_true",
        help="disable module loading in the kernel until the next boot (kernel.modules_disabled=1), once all pending "
        "events are handled and the modules of SealRequires= are live",
    )  # fmt: skip
    parser.add_argument(
        "--timeout", type=float, default=120, metavar="SEC", help="for --permanent (default: %(default)s)"
    )
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
    """Print the loads since boot, by the journal, that a seal would have refused; return 1 if there are any, else 0."""
    parsed = read_rules("")
    for problem in parsed.problems:
        print(f"kmodd seal: Ignoring invalid rule: {problem}", file=sys.stderr)
    policy, flags = Policy("enforce", parsed.rules), read_flags("")
    refused: Counter[str] = Counter()
    unreadable = 0
    with journal_records(None, None, boot=True) as lines:
        for line in lines:
            record = _record(line)
            unreadable += record is None
            found = sealed_asking(record or {}, flags)
            if found and policy.judge(*found).refused:
                query, module = found
                refused[f"{module} by {query.origin}: {query.request}"] += 1
    if unreadable:
        print(f"kmodd seal: Ignoring {unreadable} lines that are not JSON records", file=sys.stderr)
    for what, count in sorted(refused.items()):
        print(f"{what}{f', {count} times' if count > 1 else ''}")
    print(f"kmodd seal: A seal would have refused {len(refused)} different loads since boot", file=sys.stderr)
    return 1 if refused else 0


def _record(line: str) -> dict[str, object] | None:
    with contextlib.suppress(ValueError, RecursionError):
        record = json.loads(line)
        return record if isinstance(record, dict) else None
    return None


def _builtin(names: list[str]) -> set[str]:
    """Return the modules of `names` that are built into the kernel; without a module tree, none."""
    try:
        catalog = Tree().snapshot().catalog
    except NoTree:
        return set()
    return {name for name in names if catalog.is_builtin(name)}


def _permanent(socket: str, seconds: float) -> int:
    """Set kernel.modules_disabled once all events are handled, if the required modules are live; return 0, else 1.

    seconds: time limit for the events. Raises NotRunning, Refused, OSError.
    """
    call("Settle", socket, timeout_usec=int(seconds * 1e6))
    loaded = read_loaded()
    required = [name.replace("-", "_") for name in read_settings("").seal_requires]
    absent = [name for name in required if loaded.state(name) != "live"]
    builtin = _builtin(absent) if absent else set()
    missing = [name for name in absent if name not in builtin]
    if missing:
        print(f"kmodd seal: Failed to seal: required modules not live: {' '.join(missing)}", file=sys.stderr)
        return 1
    with open(MODULES_DISABLED, "w") as file:
        file.write("1")
    journal = JournalSocket()
    journal.write(Record(SEAL, NOTICE, "Module loading is disabled until the next boot (kernel.modules_disabled=1)"))
    journal.close()
    return 0
