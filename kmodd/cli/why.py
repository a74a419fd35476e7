"""`kmodd why`: show why a module is loaded, a device has its driver, or a process's request was answered so; or not."""

from __future__ import annotations

import json
import re
import sys
import time

from kmodd.cli.daemon_tree import daemon_status
from kmodd.cli.journal_options import BOOT, DIRECTORY, with_boot
from kmodd.cli.terminal import paint, show
from kmodd.cli.verb import JSON, ROOT, Verb
from kmodd.cli.why_facts import Machine, read_records
from kmodd.dataclass import replace
from kmodd.errors import NoTree
from kmodd.planning.history import Entry, subject_of_entry
from kmodd.planning.why import Answer, Records, answer_object, of_alias, of_device, of_module, of_process
from kmodd.text import duration, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

VERB = Verb(
    "why",
    "Show why a module is loaded, why a device has its driver, or what a process made the kernel ask for; or why not, "
    "and the command that would change it. SUBJECT is a module, an alias, a device (a /sys/… or /dev/… path, or a name "
    "such as 0000:00:1f.2), or the number of a process, also of one that has ended.\n\n"
    "The journal of the current boot, or of another one, says what happened; only records that root wrote count.",
    (BOOT, JSON, DIRECTORY, ROOT),
    "SUBJECT…",
    ((0, "done"), (1, "nothing is known of a SUBJECT, or the journal cannot be read"), (3, "no module tree")),
    (
        ("why usb_storage", "For what device was it loaded, when, and as whose dependency?"),
        ("why /sys/class/net/eth0", "Why does this device have its driver, or none?"),
        ("why 4242", "What has this process made the kernel load, and was it denied?"),
        ("why -b -1 nvidia", "What happened in the boot before?"),
    ),
)

_LABEL = 10
_DAY = 86_400_000_000
"""In µs."""


def main(argv: list[str]) -> int:
    """Print the answers and return 0; 1 if a subject is unknown or the journal cannot be read; 2 for wrong usage."""
    given = VERB.parse(with_boot(argv), 1)
    if isinstance(given, int):
        return given
    if "" in given.operands:
        return VERB.refuse("invalid SUBJECT ''")
    root = given.get("root").rstrip("/")
    machine, records = Machine(root, None if root else daemon_status()), read_records(VERB, given)
    status = 0 if records.is_readable else 1
    try:
        machine.check()
    except NoTree as error:
        if not records.is_past:
            VERB.complain(f"{error}; the modules that match are not known")
            status = 3
    answers = [answer for text in given.operands for answer in answers_of(text, machine, records)]
    if root or "directory" in given:  # a command would be for this machine
        answers = [replace(answer, remedies=()) for answer in answers]
    if "json" in given:
        show("".join(f"{json.dumps(answer_object(answer))}\n" for answer in answers))
    else:
        show("\n".join(_text(answer, records) for answer in answers))
    for problem in () if records.is_past else machine.problems():
        VERB.complain(str(problem))
    return status or int(any(answer.code == "unknown" for answer in answers))


def answers_of(text: str, machine: Machine, records: Records) -> list[Answer]:
    """Return the answers for one operand: a module, a process, a device, or an alias, the first that it is."""
    module = machine.module(text)
    if ((module.state or module.is_known) and not records.is_past) or records.of_module(module.name):
        return [of_module(module, records)]
    if process := re.fullmatch(r"(?s:(.*)\[([0-9]{1,10})\])|([0-9]{1,10})", text, re.ASCII):
        pid = int(process[2] or process[3])
        comm = "" if records.is_past else machine.comm(pid)
        return of_process(pid, process[1] or "", comm, records, machine.module)
    if text.startswith(("/sys/", "/dev/", "/devices/")):
        return _of_path(text, machine, records)
    if path := machine.path_of(text) or _recorded_path(text, records):
        return of_device(machine.device(path), records)
    return _of_alias(text, machine, records) or [of_module(module, records)]


def _of_path(text: str, machine: Machine, records: Records) -> list[Answer]:
    """Return the answers for a path of a device, or for the names that the kernel requests for a node without one."""
    device = machine.device(text)
    if text.startswith("/dev/") and not device.is_there:
        names = machine.names_of_node(text)
        if found := [answer for name in names for answer in _of_alias(name, machine, records)]:
            return [replace(answer, subject=text) for answer in found]
    return of_device(device, records)


def _of_alias(alias: str, machine: Machine, records: Records) -> list[Answer]:
    """Return the answers for an alias: what was decided, else its modules; none: nothing is known of it."""
    matching = [] if records.is_past else machine.matching(alias)
    found = of_alias(alias, records, machine.module)
    if found and not (matching and all(answer.code == "nomatch" for answer in found)):
        return found
    return [of_module(module, records) for module in matching]


def _recorded_path(name: str, records: Records) -> str:
    """Return the path of a device that is recorded under its kernel's name; empty: there is none."""
    found = (path for entry in reversed(records.entries) for path in entry.devices)
    return next((path for path in found if path.rpartition("/")[2] == name), "")


# ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _text(answer: Answer, records: Records) -> str:
    """Return an answer as text: the sentence, and a labelled line for each part of the way that is known."""
    lines = [paint(printable(answer.sentence), "bold", sys.stdout)]
    lines += [f"{label:>{_LABEL}}: {printable(text)}" for label, text in _rows(answer, records)]
    return "\n".join(lines) + "\n"


def _rows(answer: Answer, records: Records) -> Iterator[tuple[str, str]]:
    entry = answer.entry
    if entry:
        yield from _subject_rows(entry)
        yield from _module_rows(answer, entry)
        yield from _time_rows(answer, entry, records)
    elif answer.start:
        yield "Started", f"kmodd {_when(answer.start, records)}"
    for at, rule in answer.lines:
        yield "Line", f"{at}: {rule}" if rule else str(at)
    for note in answer.notes:
        yield "Also", note
    for suspect in answer.suspects:
        yield "Perhaps", suspect
    for remedy in answer.remedies:
        yield "Change", remedy.text
        if remedy.command:
            yield "Run", remedy.command


def _subject_rows(entry: Entry) -> Iterator[tuple[str, str]]:
    """Yield who or what the request was for."""
    if entry.devices:
        more = f" and {entry.device_count - 1} more" if entry.device_count > 1 else ""
        yield "Device", f"{subject_of_entry(entry)}, /sys{entry.devices[0]}{more}"
    elif entry.requester:
        who = entry.requester
        parts = (subject_of_entry(entry), who.exe, who.unit)
        yield "Process", ", ".join(part for part in parts if part)
    elif subject := subject_of_entry(entry):
        yield "Request", f"of {subject}"


def _module_rows(answer: Answer, entry: Entry) -> Iterator[tuple[str, str]]:
    """Yield how the request led to the module."""
    if entry.alias and entry.alias != entry.module:
        yield "Alias", entry.alias
    prefix = f"alias matched {entry.pattern}"
    if entry.pattern and entry.because.startswith(prefix):
        place = entry.because.removeprefix(prefix).removeprefix(" of ")
        yield "Matched", f"{entry.pattern}{f' at {place}' if place else ''}"
    elif entry.because and entry.because != "asked for":
        yield "Because", entry.because
    if entry.module:
        yield "Module", entry.module + (f", {entry.path}" if entry.path else "")
    others = [name for name in entry.changed if name != entry.module]
    if others and answer.module == entry.module:
        yield "With", " ".join(others)
    for name, reason in answer.needed:
        yield "Needed", f"{name}, {reason}"
    if not answer.needed and answer.module and answer.module != entry.module and answer.module in entry.changed:
        yield "Needed", f"{answer.module} came with {entry.module}"
    if (entry.at or entry.rule) and not answer.lines:
        yield "Line", ": ".join(part for part in (str(entry.at or ""), entry.rule) if part)


def _time_rows(answer: Answer, entry: Entry, records: Records) -> Iterator[tuple[str, str]]:
    """Yield when it was decided, how long it took, and by whom."""
    yield "When", _when(entry, records)
    inits = dict(entry.inits)
    parts = [duration(entry.duration)] if entry.duration else []
    if entry.begin:
        parts.append(f"after a wait of {duration(entry.wait)}")
    if answer.module in inits:
        parts.append(f"{answer.module} alone {duration(inits[answer.module])}")
    if parts:
        yield "Took", ", ".join(parts)
    version = f" {answer.start.version}" if answer.start and answer.start.version else ""
    number = f", request {entry.request_id}" if entry.request_id else ""
    yield "By", f"{entry.comm or 'kmodd'}{version}[{entry.pid}]{number}"
    if entry.repeated:
        yield "Repeated", f"{entry.repeated} more like this before, which were not recorded"
    if entry.message not in answer.sentence and not (entry.result == "loaded" and entry.request_id):
        yield "Record", entry.message


def _when(entry: Entry, records: Records) -> str:
    when = time.strftime("%a %Y-%m-%d %H:%M:%S %Z", time.localtime(entry.realtime / 1e6))
    if records.is_past:
        return f"{when}, boot {entry.boot}"
    age = max(round(time.time() * 1e6) - entry.realtime, 0)
    return f"{when}; {duration(age) if age < 2 * _DAY else f'{age // _DAY} days'} ago"
