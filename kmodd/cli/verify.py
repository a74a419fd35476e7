"""`kmodd verify`: compare the modules in the kernel with their files, with the journal, and with the kernel's trace."""

from __future__ import annotations

import json
import select
import sys
import time

from kmodd.cli.daemon_tree import tree_for
from kmodd.cli.streams import output_is_lost
from kmodd.cli.terminal import SEPARATOR, Colour, paint, show, table
from kmodd.cli.verb import JSON, ROOT, Given, Option, Verb
from kmodd.cli.why_facts import read_records
from kmodd.dataclass import dataclass, replace
from kmodd.errors import NoTree
from kmodd.host.loaded_modules import Files, read_live, read_loads
from kmodd.host.netlink import KernelEvents, Overrun
from kmodd.kernel.uevent import Uevent
from kmodd.names import module_of_path
from kmodd.planning.verify import (
    Before,
    ByAnother,
    ByKmodd,
    File,
    Kernel,
    Live,
    Result,
    Unreadable,
    Unrecorded,
    corrected,
    history_of,
    is_compared,
    judge,
    kernel_of,
    of_gone,
    of_record,
)
from kmodd.text import count_of, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kmodd.kernel.load_trace import ModuleLoad
    from kmodd.planning.verify import History, OnDisk
    from kmodd.planning.why import Records

VERB = Verb(
    "verify",
    "Compare each module in the kernel with its file in the module tree (build ID, srcversion, signer, owner), with "
    "the records of kmodd in the journal, and with the kernel's own record of loads. Nothing is printed where all is "
    "well: the module is that of the file, and kmodd has loaded it, or it was there when kmodd started, as those of "
    "an initrd.\n\n"
    "A finding is a module whose code is not that of its file, that has no file, that came without kmodd or by force, "
    "that hides itself, or whose file others can write. A file that was replaced after the load, as by DKMS or an "
    "upgrade, is an information: the kernel keeps the earlier code until the module is loaded again. Where "
    "the record of the load has no build ID, one that was only written or touched is not replaced, if its file system "
    "tells when it was made. Signatures are "
    "compared by signer and taint; only the kernel verifies them.",
    (
        Option(
            "--follow", "go on, and print results as modules are loaded, each with the time of day; with --json a "
            "JSON text sequence (RFC 7464)",
        ),
        Option("-v, --verbose", "print the number of modules, and the meaning of each taint"),
        JSON, ROOT,
    ),
    status=(
        (0, "no finding"),
        (1, "a finding, or something cannot be read"),
        (3, "no module tree"),
    ),
    examples=(
        ("verify", "Is the kernel running what is installed, and did kmodd load it?"),
        ("verify --json | jq -r .module", "The modules with a finding or an information."),
        ("verify --follow", "Say it when a module is loaded without kmodd, and who does it."),
    ),
)  # fmt: skip

_UNCOMPARED = "The kernel shows neither a build ID nor a srcversion of {}, so the code is not compared"
_UNLISTED = "Failed to read {}: {}; no module is compared"
_SETTLE = 2.0
"""Seconds from a load until --follow compares: a decision is recorded once all of its modules are loaded."""
_BUFFER = 1 << 20
"""Bytes; where they do not suffice, all modules are compared all the same."""
_EVENTS = 1000
"""Events that are read at a time."""
_HEADER = ("MODULE", "WHAT", "TAINT", "SIGNER", "LOADED BY")
_COLOURS: dict[str, Colour] = {"finding": "red", "information": "yellow", "detail": ""}


@dataclass(frozen=True, slots=True)
class _Verified:
    """A module, and all that is known of it."""

    live: Live | Unreadable
    disk: OnDisk
    history: History
    load: ModuleLoad | None = None
    results: tuple[Result, ...] = ()


def main(argv: list[str]) -> int:
    """Print the results; return 1 for a finding or what cannot be read, 3 without a module tree, else 0."""
    given = VERB.parse(argv, most=0)
    if isinstance(given, int):
        return given
    if "follow" in given:
        if "root" in given:
            return VERB.refuse("--follow and --root exclude each other")
        return _follow(given)
    try:
        seen = _look(given)
    except NoTree as error:
        VERB.complain(str(error))
        return 3
    except OSError as error:
        VERB.complain(_UNLISTED.format(error.filename, error.strerror))
        return 1
    _print(seen.modules, is_verbose="verbose" in given, is_json="json" in given)
    for problem in seen.problems:
        VERB.complain(problem)
    return int(bool(seen.problems or not seen.has_history or _findings(seen.modules)))


@dataclass(frozen=True, slots=True)
class _Seen:
    """All modules at one moment."""

    modules: list[_Verified]
    problems: list[str]
    """What is not known, as messages."""
    has_history: bool
    """False: the journal cannot be read, which is said already."""
    gone: list[_Verified]
    """Modules that were loaded, not by kmodd, and are gone."""


def _look(given: Given, came: frozenset[str] = frozenset(), since: int = 0) -> _Seen:
    """Compare all modules. Raises NoTree, and OSError if /proc/modules cannot be read.

    came: modules that were loaded after `since` (CLOCK_MONOTONIC, µs), and may be gone.
    """
    root = given.get("root").rstrip("/")
    tree = tree_for(root, None)
    tree.check()
    modules = read_live(root)
    snapshot = tree.quick_snapshot()
    records = read_records(VERB, given)
    files, loads = Files(tree, snapshot.catalog), read_loads(root)
    found, kernel = _verify(modules, files, records, loads)
    problems = [str(problem) for problem in snapshot.catalog.problems]
    mute = sum(isinstance(each.live, Live) and not is_compared(each.live, each.disk, kernel) for each in found)
    if mute:
        problems.append(_UNCOMPARED.format(count_of(mute, "module")))
    unknown = [each for each in found if isinstance(corrected(each.history, each.load), Unrecorded)]
    if unknown and records.is_readable:
        count = count_of(len(unknown), "module")
        problems.append(f"The journal has no start of kmodd in this boot, so it is not known what loaded {count}")
    away = sorted(came - {each.live.name for each in found}) if records.is_readable else []
    gone = [_Verified(Live(name), files.read(name), ByAnother(), loads.get(name)) for name in away]
    said = [(each, of_gone(each.live.name, each.load, records, since)) for each in gone]
    gone = [replace(each, results=(result,)) for each, result in said if result]
    return _Seen(found, problems, records.is_readable or not unknown, gone)


def _follow(given: Given) -> int:
    """Print results as modules are loaded, until the output ends. Return 1, or 3 without a module tree."""
    said: set[str] = set()
    came: frozenset[str] | None = frozenset()
    try:
        events, since = KernelEvents(_BUFFER), 0
        while came is not None:
            since, before = time.monotonic_ns() // 1000, since
            seen = _look(given, came, before)
            if not seen.has_history:
                return 1
            results = [(each, result) for each in seen.modules for result in each.results if result.weight != "detail"]
            for problem in seen.problems:
                if problem not in said:
                    VERB.complain(problem)
            new = [(each, result) for each, result in results if _line(each, result) not in said]
            gone = [(away, result) for away in seen.gone for result in away.results]
            for each, result in (*new, *gone):
                text = f"{SEPARATOR}{json.dumps(_object(each, result))}\n"
                show(text if "json" in given else _dated(_line(each, result), result))
            if output_is_lost():
                return 1
            said = {*(_line(each, result) for each, result in results), *seen.problems}
            came = _await_load(events)
        return 1
    except NoTree as error:
        VERB.complain(str(error))
        return 3
    except OSError as error:
        VERB.complain(_UNLISTED.format(error.filename or "the kernel's events", error.strerror))
        return 1


def _await_load(events: KernelEvents) -> frozenset[str] | None:
    """Wait until a module was loaded, and a little more: the record of the load comes after it.

    Return the modules that were; None: the output has no reader any more.
    """
    poll = select.poll()
    poll.register(events.fileno(), select.POLLIN)
    poll.register(sys.stdout.fileno(), 0)  # its errors alone
    until: float | None = None
    came = set[str]()
    while until is None or time.monotonic() < until:
        ready = poll.poll(None if until is None else max(until - time.monotonic(), 0) * 1000)
        if any(number == sys.stdout.fileno() for number, _ in ready):
            return None
        for event in events.receive(_EVENTS):
            is_load = isinstance(event, Uevent) and (event.action, event.subsystem) == ("add", "module")
            if isinstance(event, Uevent) and is_load and not event.synthetic:
                came.add(event.sysname)
            if is_load or isinstance(event, Overrun):
                until = until or time.monotonic() + _SETTLE
    return frozenset(came)


def _line(each: _Verified, result: Result) -> str:
    return f"{each.live.name}: {result.text}"


def _dated(line: str, result: Result) -> str:
    when = time.strftime("%H:%M:%S")
    return f"{when} {paint(printable(line), _COLOURS[result.weight], sys.stdout)}\n"


def _verify(
    modules: Sequence[Live | Unreadable], files: Files, records: Records, loads: Mapping[str, ModuleLoad]
) -> tuple[list[_Verified], Kernel]:
    """Return each module with what is known and found, and what all say together."""
    known = []
    for live in modules:
        disk = files.read(live.name)
        known.append(_Verified(live, disk, _history(live.name, disk, files, records), loads.get(live.name)))
    kernel = kernel_of([(each.live, each.disk) for each in known if isinstance(each.live, Live)])
    known = [replace(each, history=of_record(each.history, each.live, kernel)) for each in known]
    return [replace(each, results=_results(each, kernel)) for each in known], kernel


def _history(name: str, disk: OnDisk, files: Files, records: Records) -> History:
    """Return how a module came, by its name or that of its file, which kmodd has loaded it by."""
    found = history_of(name, records)
    if not isinstance(disk, File):
        return found
    if isinstance(found, ByAnother) and module_of_path(disk.path) != name:
        found = history_of(module_of_path(disk.path), records)
    if isinstance(found, ByKmodd) and found.path and files.is_same(found.path, disk):
        found = replace(found, path=disk.path)
    return found


def _results(each: _Verified, kernel: Kernel) -> tuple[Result, ...]:
    if isinstance(each.live, Unreadable):
        return (Result("unreadable", f"Failed to read {each.live.path}: {each.live.why}, so it is not compared"),)
    when = ""
    if isinstance(each.disk, File):
        when = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(each.disk.came / 1e6))
    return judge(each.live, each.disk, each.history, each.load, kernel, time.monotonic_ns() // 1000, when)


def _findings(found: Sequence[_Verified]) -> int:
    return sum(result.weight == "finding" for each in found for result in each.results)


# ── output ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _print(found: Sequence[_Verified], *, is_verbose: bool, is_json: bool) -> None:
    """Print the modules of which there is something to say, and on request details and a count."""
    weights = ("finding", "information", "detail") if is_verbose else ("finding", "information")
    shown = [(each, [result for result in each.results if result.weight in weights]) for each in found]
    shown = [(each, results) for each, results in shown if results]
    if is_json:
        show("".join(f"{json.dumps(_object(each, result))}\n" for each, results in shown for result in results))
        return
    if shown:
        rows = [_row(each, results) for each, results in shown]
        colours = [_COLOURS[min((result.weight for result in results), key=weights.index)] for _, results in shown]
        lines = [_line(each, result) for each, results in shown for result in results]
        show(table(_HEADER, rows, [1, 3, 4], colours) + "\n" + "".join(f"{printable(line)}\n" for line in lines))
    if is_verbose:
        show(f"{count_of(len(found), 'module')}, {count_of(_findings(found), 'finding')}\n")


def _row(each: _Verified, results: Sequence[Result]) -> list[str]:
    taint = each.live.taint if isinstance(each.live, Live) else ""
    signer = each.disk.signer if isinstance(each.disk, File) else ""
    codes = ",".join(dict.fromkeys(result.code for result in results))
    return [each.live.name, codes, taint or "-", signer or "-", _loaded_by(each)]


def _loaded_by(each: _Verified) -> str:
    if each.load:
        return f"{each.load.comm or '?'}[{each.load.pid}]"
    match each.history:
        case ByKmodd(program=program, pid=pid):
            return f"{program}[{pid}]"
        case Before():
            return "before kmodd"
        case _:
            return "-"


def _object(each: _Verified, result: Result) -> dict[str, object]:
    """Return a result as JSON values; null: not known, or there is none."""
    live = each.live if isinstance(each.live, Live) else None
    file = each.disk if isinstance(each.disk, File) else None
    return {
        "module": each.live.name,
        "what": result.code,
        "weight": result.weight,
        "text": printable(result.text),
        "build_id": live.build_id.hex() or None if live else None,
        "srcversion": live.srcversion or None if live else None,
        "taint": live.taint if live else None,
        "path": each.disk.path or None,
        "file_build_id": file.build_id.hex() or None if file else None,
        "file_srcversion": file.srcversion or None if file else None,
        "file_signer": printable(file.signer) or None if file else None,
        "file_changed_usec": file.changed or None if file else None,
        "file_born_usec": file.born or None if file else None,
        "loaded_usec": each.history.since if isinstance(each.history, ByKmodd) else None,
        "loaded_by": _loader_object(each),
    }


def _loader_object(each: _Verified) -> dict[str, object] | None:
    """Return the process that loaded a module: by the kernel's trace, else by the journal."""
    if each.load:
        return {"comm": printable(each.load.comm) or None, "pid": each.load.pid}
    return {"comm": each.history.program, "pid": each.history.pid} if isinstance(each.history, ByKmodd) else None
