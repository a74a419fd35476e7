"""Read kmodd's journal records as values: `Entry`. docs/JOURNAL.md describes the fields."""

from __future__ import annotations

import json
import re

from kmodd.dataclass import dataclass
from kmodd.errors import Where
from kmodd.kernel.requester import Requester
from kmodd.planning.record import DEBUG, INFO, PREFIX
from kmodd.planning.request import ORIGINS, Origin, Request
from kmodd.planning.sentence import subject_of
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Final

IDENTIFIER: Final = "kmodd"
"""SYSLOG_IDENTIFIER of the records."""
_ORIGINS: dict[str, Origin] = {origin: origin for origin in ORIGINS}
_CHANGES: Final = ("loaded", "removed")
_CANDIDATE: Final = re.compile(
    "uid=([0-9]{1,10}) container=(yes|no) unit=([^ ]+)( kernel=yes)? exe=(.*)", re.ASCII | re.DOTALL
)
_FOR_ANOTHER: Final = ("dependency of ", "softdep of ")
"""How KMODD_BECAUSE of a module begins that was loaded for the requested one."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A record in the journal: a decision, a module of one, or an event of the daemon such as its start.

    A text is empty, a number 0, and a tuple empty where the record has no such field. Times are in µs.
    """

    kind: str
    """The last four digits of MESSAGE_ID, as in docs/JOURNAL.md."""
    message: str
    priority: int
    """As in syslog(3)."""
    realtime: int
    """When it was written, since 1970."""
    monotonic: int
    """When it was written (CLOCK_MONOTONIC of its boot)."""
    boot: str
    """The boot's id, 32 hexadecimal digits."""
    host: str
    pid: int
    """Of the daemon, or of the tool."""
    comm: str
    """`kmodd` for the daemon, else the tool's name."""
    result: str = ""
    """KMODD_RESULT; empty: an event of the daemon."""
    source: str = ""
    request_id: int = 0
    """Number of the request since the start of its daemon; 0: none."""
    module: str = ""
    """The requested module that the record is about."""
    modules: tuple[str, ...] = ()
    """All modules that were loaded or removed, in that order."""
    alias: str = ""
    pattern: str = ""
    because: str = ""
    path: str = ""
    devices: tuple[str, ...] = ()
    """Paths /devices/…; at most 16."""
    device_count: int = 0
    device_name: str = ""
    subsystem: str = ""
    begin: int = 0
    """When the event or request came (CLOCK_MONOTONIC); 0: unknown."""
    wait: int = 0
    """From `begin` until a loader had the first module."""
    duration: int = 0
    """From there to the end."""
    inits: tuple[tuple[str, int], ...] = ()
    """Each module that was loaded, in order, and the duration of its load."""
    reasons: tuple[tuple[str, str], ...] = ()
    """Each module that came because another needs it, and why: `dependency of uas`."""
    errno: int = 0
    at: Where | None = None
    """The line that decided."""
    rule: str = ""
    """Text of that line."""
    verdict: str = ""
    """`would_deny` or `log`."""
    requester: Requester | None = None
    ambiguous: bool = False
    """Several processes asked at once, and the requester is unknown."""
    candidates: tuple[Requester, ...] = ()
    """These processes, with what rules ask of them; empty: one of them is unknown."""
    firmware: str = ""
    repeated: int = 0
    """Number of equal records before this one that were not written."""
    version: str = ""
    """Of kmodd, in the record of its start."""
    loaded_before: tuple[str, ...] = ()
    """The modules that the kernel had then."""
    build_ids: tuple[tuple[str, str], ...] = ()
    """Each module whose code is known, and its build ID as hexadecimal digits."""

    @property
    def is_detail(self) -> bool:
        """Whether it is the record of a module of a decision, which has a record of its own."""
        return self.priority == DEBUG and self.request_id != 0

    @property
    def is_decision(self) -> bool:
        """Whether it is the record of a request with its result."""
        return bool(self.result) and not self.is_detail

    @property
    def is_for_another(self) -> bool:
        """Whether the module was loaded for another one."""
        return self.because.startswith(_FOR_ANOTHER)

    @property
    def changed(self) -> tuple[str, ...]:
        """The modules that were loaded or removed.

        A record without KMODD_MODULES is that of one module: of an earlier version, or of a tool without the daemon.
        """
        return self.modules or ((self.module,) if self.result in _CHANGES and self.module else ())


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions on an entry; each one that is given must hold."""

    module: str = ""
    """Requested, loaded or removed; spelled with `_`."""
    device: str = ""
    """Path /devices/… of a device, which counts for those below it too, or the last part of one."""
    uid: int | None = None
    """User of the process that made the kernel ask."""
    results: tuple[str, ...] = ()

    def admits(self, entry: Entry) -> bool:
        """Return whether the conditions hold for an entry."""
        who = entry.requester
        return (
            (not self.module or self.module == entry.module or self.module in entry.modules)
            and (not self.device or any(_is_of(path, self.device) for path in entry.devices))
            and (self.uid is None or (who is not None and who.uid == self.uid))
            and (not self.results or entry.result in self.results)
        )


def _is_of(path: str, device: str) -> bool:
    if device.startswith("/"):
        return path == device or path.startswith(f"{device}/")
    return device in path.split("/")


@dataclass(slots=True)
class Ignored:
    """What was not read of a journal."""

    distrusted: int = 0
    """Number of records in kmodd's name that root did not write; any user can write such."""
    unreadable: int = 0
    """Number of lines that are not a JSON object."""


def entries_of(lines: Iterable[str], ignored: Ignored | None = None) -> Iterator[Entry]:
    """Yield the entries of kmodd in the output of `journalctl --output=json --all`, which has one record per line.

    ignored: counts what is left out.
    """
    ignored = ignored or Ignored()
    for line in lines:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            ignored.unreadable += 1
        elif _text_of(record, "SYSLOG_IDENTIFIER") == IDENTIFIER:
            if entry := entry_of(record):
                yield entry
            else:
                ignored.distrusted += 1


def entry_of(record: Mapping[str, object]) -> Entry | None:
    """Return the entry of a record of kmodd; None: root did not write it."""
    if _text_of(record, "_UID") != "0":
        return None
    at = _text_of(record, "KMODD_FILE")
    devices = _texts_of(record, "KMODD_DEVPATH")
    reasons = (each.partition(":") for each in _texts_of(record, "KMODD_REASON"))
    build_ids = (each.partition(":") for each in _texts_of(record, "KMODD_BUILD_ID"))
    inits = (each.rpartition(":") for each in _texts_of(record, "KMODD_INIT_USEC"))
    return Entry(
        kind=_text_of(record, "MESSAGE_ID").removeprefix(PREFIX),
        message=_text_of(record, "MESSAGE"),
        priority=_number(record, "PRIORITY", INFO),
        realtime=_number(record, "__REALTIME_TIMESTAMP"),
        monotonic=_number(record, "__MONOTONIC_TIMESTAMP"),
        boot=_text_of(record, "_BOOT_ID"),
        host=_text_of(record, "_HOSTNAME"),
        pid=_number(record, "_PID"),
        comm=_text_of(record, "_COMM"),
        result=_text_of(record, "KMODD_RESULT"),
        source=_text_of(record, "KMODD_SOURCE"),
        request_id=_number(record, "KMODD_REQUEST_ID"),
        module=_text_of(record, "KMODD_MODULE"),
        modules=_texts_of(record, "KMODD_MODULES"),
        alias=_text_of(record, "KMODD_ALIAS"),
        pattern=_text_of(record, "KMODD_PATTERN"),
        because=_text_of(record, "KMODD_BECAUSE"),
        path=_text_of(record, "KMODD_PATH"),
        devices=devices,
        device_count=_number(record, "KMODD_DEVICES_COUNT", len(devices)),
        device_name=_text_of(record, "KMODD_DEVICE_NAME"),
        subsystem=_text_of(record, "KMODD_SUBSYSTEM"),
        begin=_number(record, "KMODD_BEGIN_MONOTONIC_USEC"),
        wait=_number(record, "KMODD_WAIT_USEC"),
        duration=_number(record, "KMODD_DURATION_USEC"),
        inits=tuple((name, _unsigned(usec)) for name, _, usec in inits),
        build_ids=tuple((name, build_id) for name, _, build_id in build_ids),
        reasons=tuple((name, reason) for name, _, reason in reasons),
        errno=_number(record, "ERRNO"),
        at=Where(at, _number(record, "KMODD_LINE")) if at else None,
        rule=_text_of(record, "KMODD_RULE"),
        verdict=_text_of(record, "KMODD_VERDICT"),
        requester=_requester(record),
        ambiguous=_text_of(record, "KMODD_REQUESTER_AMBIGUOUS") == "yes",
        candidates=_candidates(_texts_of(record, "KMODD_REQUESTER_CANDIDATE")),
        firmware=_text_of(record, "KMODD_FIRMWARE"),
        repeated=_number(record, "KMODD_REPEATED"),
        version=_text_of(record, "KMODD_VERSION"),
        loaded_before=_texts_of(record, "KMODD_LOADED_BEFORE"),
    )


def subject_of_entry(entry: Entry) -> str:
    """Return what an entry's request was for: a device, a process, or who asked; empty if that is unknown."""
    origin = _ORIGINS.get(entry.source)
    if origin is None:
        return ""
    request = Request(
        entry.alias, origin, entry.devices, entry.device_count, subsystem=entry.subsystem, requester=entry.requester,
        ambiguous=entry.ambiguous,
    )  # fmt: skip
    return subject_of(request, entry.device_name)


def as_object(entry: Entry) -> dict[str, object]:
    """Return an entry as JSON values, the format of `kmodd history --json` (docs/JOURNAL.md); null: not known."""
    who = entry.requester
    return {
        "realtime_usec": entry.realtime,
        "monotonic_usec": entry.monotonic,
        "boot_id": entry.boot,
        "host": entry.host or None,
        "program": entry.comm or None,
        "pid": entry.pid or None,
        "message": entry.message,
        "priority": entry.priority,
        "result": entry.result,
        "source": entry.source or None,
        "request_id": entry.request_id or None,
        "module": entry.module or None,
        "modules": list(entry.changed),
        "alias": entry.alias or None,
        "pattern": entry.pattern or None,
        "because": entry.because or None,
        "path": entry.path or None,
        "devices": list(entry.devices),
        "device_count": entry.device_count,
        "device_name": entry.device_name or None,
        "subsystem": entry.subsystem or None,
        "begin_monotonic_usec": entry.begin or None,
        "wait_usec": entry.wait if entry.begin else None,
        "duration_usec": entry.duration,
        "reasons": dict(entry.reasons),
        "init_usec": dict(entry.inits),
        "build_ids": dict(entry.build_ids),
        "errno": entry.errno or None,
        "file": entry.at.file if entry.at else None,
        "line": entry.at.line if entry.at else None,
        "rule": entry.rule or None,
        "verdict": entry.verdict or None,
        "requester": None if who is None else _requester_object(who),
        "ambiguous": entry.ambiguous,
        "candidates": [_candidate_object(each) for each in entry.candidates],
        "repeated": entry.repeated,
    }


def _requester_object(who: Requester) -> dict[str, object]:
    return {
        "pid": who.pid or None,
        "comm": who.comm,
        "exe": who.exe or None,
        "uid": who.uid,
        "loginuid": who.loginuid,
        "unit": who.unit or None,
        "cgroup": who.cgroup or None,
        "container": who.container,
        "kernel": who.is_kernel,
    }


def _candidate_object(who: Requester) -> dict[str, object]:
    return {
        "uid": who.uid,
        "container": who.container,
        "unit": who.unit or None,
        "exe": who.exe or None,
        "kernel": who.is_kernel,
    }


def _texts_of(record: Mapping[str, object], name: str) -> tuple[str, ...]:
    """Return the values of a journal field as text.

    journalctl --output=json prints binary values as lists of numbers, and repeated fields as lists of values.
    """
    value = record.get(name)
    is_repeated = isinstance(value, list) and value and not isinstance(value[0], int)
    return tuple(map(_text, value)) if isinstance(value, list) and is_repeated else (_text(value),) if value else ()


def _text_of(record: Mapping[str, object], name: str) -> str:
    """Return a journal field as text, empty without one; the first of a repeated field."""
    return next(iter(_texts_of(record, name)), "")


def _text(value: object) -> str:
    if isinstance(value, list):
        numbers = [number for number in value if isinstance(number, int) and 0 <= number < 256]
        return decode(bytes(numbers))
    return value if isinstance(value, str) else ""


def _number(record: Mapping[str, object], name: str, default: int = 0) -> int:
    return _unsigned(_text_of(record, name), default)


def _unsigned(text: str, default: int = 0) -> int:
    return int(text) if re.fullmatch("[0-9]{1,18}", text, re.ASCII) else default


def _requester(record: Mapping[str, object]) -> Requester | None:
    """Return the process that made the kernel ask; None: its user is not known. PID 0: its number is not."""
    uid = _text_of(record, "KMODD_REQUESTER_UID")
    if not re.fullmatch("[0-9]{1,10}", uid, re.ASCII):
        return None
    login = _text_of(record, "KMODD_REQUESTER_LOGINUID")
    return Requester(
        _number(record, "KMODD_REQUESTER_PID"),
        _text_of(record, "KMODD_REQUESTER_COMM"),
        _text_of(record, "KMODD_REQUESTER_EXE"),
        int(uid),
        _unsigned(login) if login else None,
        _text_of(record, "KMODD_REQUESTER_CGROUP"),
        _text_of(record, "KMODD_REQUESTER_UNIT"),
        _text_of(record, "KMODD_REQUESTER_CONTAINER") == "yes",
        is_kernel=_text_of(record, "KMODD_REQUESTER_KERNEL") == "yes",
    )


def _candidates(texts: tuple[str, ...]) -> tuple[Requester, ...]:
    """Return the processes of KMODD_REQUESTER_CANDIDATE, without number and name; empty: one is not valid."""
    found = [match.groups() for text in texts if (match := _CANDIDATE.fullmatch(text))]
    if len(found) < len(texts):
        return ()
    return tuple(
        Requester(
            0, "", exe, int(uid), None, "", "" if unit == "-" else unit, container == "yes", is_kernel=bool(kernel)
        )
        for uid, container, unit, kernel, exe in found
    )
