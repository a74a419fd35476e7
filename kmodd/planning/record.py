"""The journal record of an outcome: MESSAGE_ID, level, sentence and fields."""

from __future__ import annotations

from kmodd.dataclass import dataclass, replace
from kmodd.kernel.requester import Requester
from kmodd.planning.outcome import KEPT_OUT, OVERRIDDEN, Outcome, Result
from kmodd.planning.request import Request
from kmodd.planning.sentence import foreign_part, sentence_of

EMERG, ALERT, CRIT, ERR, WARNING, NOTICE, INFO, DEBUG = range(8)
"""syslog(3) levels."""

PREFIX = "6c3fd7e0c7e64ed3a8a4f3b0a8a1"
"""Random prefix of all MESSAGE_IDs of kmodd; systemd/kmodd.catalog explains each record."""
OVERRUN, ALREADY_THERE, STARTED, RELOADED, BAD_INPUT, NO_TREE, COLDPLUG_DONE, JOURNAL_GAP, NO_LOADER = (
    f"{PREFIX}{number}" for number in ("f120", "f121", "f122", "f123", "f124", "f125", "f126", "f127", "f128")
)
DRIFT, ADOPTED, FIRMWARE, SEAL = (f"{PREFIX}{number}" for number in ("f129", "f12a", "f12b", "f12c"))

KINDS: dict[Result, tuple[str, int]] = {
    "loaded": ("f101", INFO),
    "live": ("f102", DEBUG),
    "builtin": ("f103", DEBUG),
    "blacklisted": ("f104", INFO),
    "denied": ("f105", NOTICE),
    "missing": ("f106", WARNING),
    "failed": ("f107", ERR),
    "crashed": ("f108", CRIT),
    "stuck": ("f109", WARNING),
    "nomatch": ("f10a", DEBUG),
    "not_attempted": ("f10b", NOTICE),
    "removed": ("f10c", INFO),
    "in_use": ("f10d", NOTICE),
    "absent": ("f10e", NOTICE),
    "not_removed": ("f10f", ERR),
    "blocked": ("f110", NOTICE),
}


@dataclass(frozen=True, slots=True)
class Record:
    """A journal record."""

    message_id: str
    priority: int
    message: str
    fields: tuple[tuple[str, str], ...] = ()
    """Fields of kmodd in their order; a name may repeat."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a record says of its request beside the outcome."""

    number: int = 0
    """Of the request, since the start of the daemon; 0: it has none."""
    device_name: str = ""
    """What its device is called; empty: unknown."""


NO_SUBJECT = Subject()
"""Nothing more is known of the request."""


def record_of(outcome: Outcome, repeated: int = 0, subject: Subject = NO_SUBJECT) -> Record:
    """Return the record of `outcome`. repeated: number of equal records suppressed before it."""
    fields = fields_of(outcome, subject)
    sentence = sentence_of(outcome, subject.device_name) + foreign_part(outcome)
    return counted(Record(PREFIX + KINDS[outcome.result][0], priority_of(outcome), sentence, fields), repeated)


def counted(record: Record, repeated: int) -> Record:
    """Return a record that says how many equal ones were suppressed before it."""
    if not repeated:
        return record
    sentence = f"{record.message}; {repeated} more like this since the last record"
    return replace(record, message=sentence, fields=(*record.fields, ("KMODD_REPEATED", str(repeated))))


def priority_of(outcome: Outcome) -> int:
    """Return the level of the record of `outcome`, as in syslog(3)."""
    priority = outcome.load_error.level if outcome.load_error else KINDS[outcome.result][1]
    if outcome.result == "not_attempted" and (outcome.errno or outcome.detail in (KEPT_OUT, OVERRIDDEN)):
        priority = DEBUG  # the refusal itself was logged before, or the administrator wants it so
    if outcome.result == "nomatch" and outcome.request.origin in ("boot", "operator"):
        priority = WARNING  # an administrator wrote that name
    return min(priority, WARNING) if outcome.foreign else priority


def fields_of(outcome: Outcome, subject: Subject = NO_SUBJECT) -> tuple[tuple[str, str], ...]:
    """Return the fields of the record of `outcome`."""
    request = outcome.request
    fields = [
        ("KMODD_RESULT", outcome.result),
        ("KMODD_SOURCE", request.origin),
        ("KMODD_ALIAS", request.text),
        ("KMODD_BECAUSE", str(outcome.because)),
    ]
    if subject.number:
        fields.append(("KMODD_REQUEST_ID", str(subject.number)))
    if outcome.result != "nomatch":
        fields.append(("KMODD_MODULE", outcome.module))
    if outcome.because.pattern:
        fields.append(("KMODD_PATTERN", outcome.because.pattern))
    if outcome.path:
        fields.append(("KMODD_PATH", outcome.path))
    if outcome.result in ("loaded", "failed", "crashed", "stuck", "removed", "not_removed"):
        fields.append(("KMODD_DURATION_USEC", str(outcome.duration_usec)))
    if outcome.build_id:
        fields.append(build_id_of(outcome))
    if outcome.errno:
        fields.append(("ERRNO", str(outcome.errno)))
    if outcome.at:
        fields += [("KMODD_FILE", outcome.at.file), ("KMODD_LINE", str(outcome.at.line))]
    if outcome.rule:
        fields.append(("KMODD_RULE", outcome.rule))
    fields += outcome.evidence
    fields += _of_requester(request)
    if request.subsystem:
        fields.append(("KMODD_SUBSYSTEM", request.subsystem))
    fields += [("KMODD_DEVPATH", device) for device in request.devices]
    if request.device_count > len(request.devices):
        fields.append(("KMODD_DEVICES_COUNT", str(request.device_count)))
    if subject.device_name:
        fields.append(("KMODD_DEVICE_NAME", subject.device_name))
    return tuple(fields)


def build_id_of(outcome: Outcome) -> tuple[str, str]:
    """Return the field with the build ID of a module that was loaded."""
    return "KMODD_BUILD_ID", f"{outcome.module}:{outcome.build_id}"


def after_all(outcome: Outcome) -> Record:
    """Return the record of a load that ended after it was reported as stalled with its module live."""
    late = replace(outcome, result="live", detail="its load, which was reported before, has ended")
    return replace(record_of(late), priority=INFO)


def _conditions_of(who: Requester) -> str:
    """Return what policy goes by, as conditions of policy.d, and whether it is a thread of the kernel.

    The path comes last, as it may contain blanks.
    """
    container = "yes" if who.container else "no"
    kernel = " kernel=yes" if who.is_kernel else ""
    return f"uid={who.uid} container={container} unit={who.unit or '-'}{kernel} exe={who.exe}"


def _of_requester(request: Request) -> list[tuple[str, str]]:
    """Return the fields of the process that made the kernel ask; if it is unknown, of those of whom it is one."""
    who = request.requester
    if who is None:
        candidates = [("KMODD_REQUESTER_CANDIDATE", _conditions_of(each)) for each in request.candidates]
        return [("KMODD_REQUESTER_AMBIGUOUS", "yes"), *candidates] if request.ambiguous else []
    return [
        ("KMODD_REQUESTER_PID", str(who.pid) if who.pid else ""),
        ("KMODD_REQUESTER_COMM", who.comm),
        ("KMODD_REQUESTER_EXE", who.exe),
        ("KMODD_REQUESTER_UID", str(who.uid)),
        ("KMODD_REQUESTER_LOGINUID", "" if who.loginuid is None else str(who.loginuid)),
        ("KMODD_REQUESTER_CGROUP", who.cgroup),
        ("KMODD_REQUESTER_UNIT", who.unit),
        ("KMODD_REQUESTER_CONTAINER", "yes" if who.container else "no"),
        *([("KMODD_REQUESTER_KERNEL", "yes")] if who.is_kernel else []),
    ]
