"""`kmodd seal`: refuse modules that no rule allows, rehearse that, or disable module loading in the kernel."""

from __future__ import annotations

import subprocess
from collections import Counter

from kmodd.cli.client import NotRunning, Refused
from kmodd.cli.daemon_away import call_awaited, not_running
from kmodd.cli.verb import DEFAULT_TIMEOUT, NOT_RUNNING, SOCKET, Option, Verb, seconds_of
from kmodd.errors import NoTree
from kmodd.host.config_files import read_flags, read_rules, read_settings
from kmodd.host.journal import JournalSocket
from kmodd.host.journalctl import THIS_BOOT, journal_records
from kmodd.host.kernel_facts import MODULES_DISABLED
from kmodd.host.paths import CONTROL_SOCKET
from kmodd.host.proc_modules import read_loaded
from kmodd.host.tree import Tree
from kmodd.planning.history import Ignored, entries_of
from kmodd.planning.policy import Policy
from kmodd.planning.policy_history import sealed_asking
from kmodd.planning.record import NOTICE, SEAL, Record
from kmodd.text import count_of

VERB = Verb(
    "seal",
    "Refuse modules that no rule of policy.d allows. Without --permanent, the daemon enforces the seal, until --undo "
    "or the next boot.",
    (
        Option("--rehearse", "show what a seal would have refused since boot"),
        Option("--undo", "lift the seal"),
        Option(
            "--permanent",
            "disable module loading in the kernel until the next boot (kernel.modules_disabled=1), once all pending "
            "events are handled and the modules of SealRequires= are live",
        ),
        Option("-t, --timeout", f"seconds to wait at most for --permanent (default: {DEFAULT_TIMEOUT})", "SEC"),
        SOCKET,
    ),
    status=((0, "done"), (1, "failed, or a rehearsed seal would refuse a load"), NOT_RUNNING),
    examples=(
        ("seal --rehearse", "Which loads since boot would a seal have refused?"),
        ("seal", "Seal until the next boot."),
    ),
)
_WAYS = ("rehearse", "undo", "permanent")


def main(argv: list[str]) -> int:
    """Return 0 on success, 1 on failure or if a rehearsed seal refuses a load, 7 if the daemon is not running."""
    given = VERB.parse(argv, most=0)
    if isinstance(given, int):
        return given
    ways = [way for way in _WAYS if way in given]
    if len(ways) > 1:
        return VERB.refuse(f"--{ways[0]} and --{ways[1]} exclude each other")
    timeout_usec, socket = seconds_of(given.get("timeout", DEFAULT_TIMEOUT)), given.get("socket", CONTROL_SOCKET)
    if timeout_usec is None:
        return VERB.refuse(f"invalid --timeout {given.get('timeout')!r}; expected seconds")
    try:
        if "rehearse" in given:
            return _rehearse()
        if "permanent" in given:
            return _permanent(socket, timeout_usec)
        call_awaited("Seal", socket, sealed="undo" not in given)
    except NotRunning as error:
        return not_running(VERB, error, socket)
    except (Refused, OSError, subprocess.CalledProcessError) as error:
        VERB.complain(f"{error}")
        return 1
    return 0


def _rehearse() -> int:
    """Print the loads since boot, by the journal, that a seal would have refused; return 1 if there are any, else 0."""
    parsed = read_rules("")
    for problem in parsed.problems:
        VERB.complain(f"Ignoring invalid rule: {problem}")
    policy, flags = Policy("enforce", parsed.rules), read_flags("")
    refused: Counter[str] = Counter()
    ignored = Ignored()
    with journal_records(THIS_BOOT) as lines:
        for entry in entries_of(lines, ignored):
            found = sealed_asking(entry, flags)
            for module in found[1] if found else ():
                if found and any(policy.judge(query, module).refused for query in found[0]):
                    refused[f"{module} by {entry.source}: {entry.alias}"] += 1
    if ignored.unreadable:
        VERB.complain(f"Ignoring {count_of(ignored.unreadable, 'line')} without a JSON record")
    for what, count in sorted(refused.items()):
        print(f"{what}{f', {count} times' if count > 1 else ''}")
    VERB.complain(f"A seal would have refused {count_of(len(refused), 'different load')} since boot")
    return 1 if refused else 0


def _builtin(names: list[str]) -> set[str]:
    """Return the modules of `names` that are built into the kernel; without a module tree, none."""
    try:
        catalog = Tree().snapshot().catalog
    except NoTree:
        return set()
    return {name for name in names if catalog.is_builtin(name)}


def _permanent(socket: str, timeout_usec: int) -> int:
    """Set kernel.modules_disabled once all events are handled, if the required modules are live; return 0, else 1.

    timeout_usec: time limit for the events, µs. Raises NotRunning, Refused, OSError.
    """
    call_awaited("Settle", socket, timeout_usec=timeout_usec)
    loaded = read_loaded()
    required = [name.replace("-", "_") for name in read_settings("").seal_requires]
    absent = [name for name in required if loaded.state(name) != "live"]
    builtin = _builtin(absent) if absent else set()
    missing = [name for name in absent if name not in builtin]
    if missing:
        VERB.complain(f"Failed to seal: required modules not live: {' '.join(missing)}")
        return 1
    with open(MODULES_DISABLED, "w") as file:
        file.write("1")
    journal = JournalSocket()
    journal.write(Record(SEAL, NOTICE, "Module loading is disabled until the next boot (kernel.modules_disabled=1)"))
    journal.close()
    return 0
