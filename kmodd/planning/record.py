"""The journal record of an outcome: MESSAGE_ID, level, sentence and fields."""

from __future__ import annotations

import errno as errors

from kmodd.dataclass import dataclass, replace
from kmodd.planning.outcome import DRY_RUN, KEPT_OUT, OVERRIDDEN, Outcome, Result
from kmodd.planning.request import Request
from kmodd.text import duration

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


def record_of(outcome: Outcome, repeated: int = 0) -> Record:
    """Return the record of `outcome`. repeated: number of equal records suppressed before it."""
    number, priority = KINDS[outcome.result]
    if outcome.load_error:
        priority = outcome.load_error.level
    if outcome.result == "not_attempted" and outcome.errno:
        priority = DEBUG  # the refusal itself was logged before
    if outcome.result == "not_attempted" and outcome.detail in (KEPT_OUT, OVERRIDDEN):
        priority = DEBUG  # the administrator wants it so
    if outcome.result == "nomatch" and outcome.request.origin in ("boot", "operator"):
        priority = WARNING  # an administrator wrote that name
    if outcome.foreign:
        priority = min(priority, WARNING)
    request = outcome.request
    fields = [
        ("KMODD_RESULT", outcome.result),
        ("KMODD_SOURCE", request.origin),
        ("KMODD_ALIAS", request.text),
        ("KMODD_BECAUSE", str(outcome.because)),
    ]
    if outcome.result != "nomatch":
        fields.append(("KMODD_MODULE", outcome.module))
    if outcome.because.pattern:
        fields.append(("KMODD_PATTERN", outcome.because.pattern))
    if outcome.path:
        fields.append(("KMODD_PATH", outcome.path))
    if outcome.result in ("loaded", "failed", "crashed", "stuck", "removed", "not_removed"):
        fields.append(("KMODD_DURATION_USEC", str(outcome.duration_usec)))
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
    sentence = _sentence(outcome) + (f"; its file {outcome.foreign}" if outcome.foreign else "")
    if repeated:
        fields.append(("KMODD_REPEATED", str(repeated)))
        sentence += f"; {repeated} more like this since the last record"
    return Record(PREFIX + number, priority, sentence, tuple(fields))


def after_all(outcome: Outcome) -> Record:
    """Return the record of a load that ended after it was reported as stalled with its module live."""
    late = replace(outcome, result="live", detail="its load, which was reported before, has ended")
    return replace(record_of(late), priority=INFO)


def _of_requester(request: Request) -> list[tuple[str, str]]:
    """Return the fields of the process that made the kernel ask; if it is unknown, only whether others asked, too."""
    who = request.requester
    if who is None:
        return [("KMODD_REQUESTER_AMBIGUOUS", "yes")] if request.ambiguous else []
    return [
        ("KMODD_REQUESTER_PID", str(who.pid)),
        ("KMODD_REQUESTER_COMM", who.comm),
        ("KMODD_REQUESTER_EXE", who.exe),
        ("KMODD_REQUESTER_UID", str(who.uid)),
        ("KMODD_REQUESTER_LOGINUID", "" if who.loginuid is None else str(who.loginuid)),
        ("KMODD_REQUESTER_CGROUP", who.cgroup),
        ("KMODD_REQUESTER_UNIT", who.unit),
        ("KMODD_REQUESTER_CONTAINER", "yes" if who.container else "no"),
    ]


def _sentence(outcome: Outcome) -> str:
    """Return the MESSAGE: result, module, device or process, duration and reason."""
    because = f"because {outcome.because}"
    if outcome.request.removing and outcome.request.removing.idle_sec:
        because = f"because nothing has used it for {outcome.request.removing.idle_sec}s"
    whom = _for_whom(outcome.request)
    took = duration(outcome.duration_usec)
    name = outcome.module
    detail = f" ({outcome.detail})" if outcome.detail else ""
    match outcome.result:
        case "loaded":
            return f"Loaded {name}{whom} in {took}, {because}{detail}"
        case "live":
            return f"{name}{whom} is loaded already, {because}{detail}"
        case "builtin":
            return f"{name}{whom} is built into the kernel, {because}{detail}"
        case "blacklisted":
            return f"Not loading {name}{whom}: blacklisted at {outcome.at}; {because}"
        case "denied":
            at = f" at {outcome.at}" if outcome.at else ""  # a seal has no line
            return f"Not loading {name}{whom}: denied by {outcome.rule}{at}; {because}"
        case "blocked":
            return f"Not loading {name}{whom}: blocked by {outcome.rule} at {outcome.at}; {because}"
        case "missing":
            missing = f"file {outcome.path} is missing" if outcome.path else "its file is not in the module tree"
            return f"Could not load {name}{whom}: {missing}; {because}{detail}"
        case "failed":
            return f"Could not load {name}{whom} after {took}: {_reason(outcome)}; {because}"
        case "crashed" if outcome.detail:
            return f"{name}{whom} crashed in the kernel {outcome.detail}; {because}"
        case "crashed":
            return f"{name}{whom} crashed in the kernel after {took}; {because}"
        case "stuck" if outcome.request.removing:
            return f"Removing {name} has been going on for {took}{detail}; {because}"
        case "stuck":
            return f"{name}{whom} has been starting{f' for {took}' if outcome.duration_usec else ''}{detail}; {because}"
        case "nomatch":
            return f"No module for {outcome.request.text}{whom}"
        case "removed":
            return f"Removed {name} in {took}, {because}{detail}"
        case "in_use":
            return f"Not removing {name}: it is in use; {because}"
        case "absent":
            return f"Not removing {name}: it is not loaded; {because}"
        case "not_removed":
            return f"Could not remove {name} after {took}: {_reason(outcome)}; {because}"
        case "not_attempted" if outcome.request.removing:
            return f"Not removing {name}: {outcome.detail}; {because}"
        case "not_attempted" if outcome.detail == DRY_RUN and outcome.command:
            where = f"the install command of {name} at {outcome.at}"
            return f"Would run {outcome.command}, {where},{whom or ' in place of a load'}, {because}"
        case "not_attempted" if outcome.detail == DRY_RUN:
            return f"Would load {name}{whom}, {because}"
        case "not_attempted":
            return f"Not loading {name}{whom}: {outcome.detail}; {because}"


def _reason(outcome: Outcome) -> str:
    code = errors.errorcode.get(outcome.errno, str(outcome.errno)) if outcome.errno else ""
    says = outcome.load_error.words if outcome.load_error else ""
    return ", ".join(part for part in (code, says, outcome.detail) if part)


def _for_whom(request: Request) -> str:
    """Return ` for 0000:03:00.0`, ` for 2 devices, first 0000:03:00.0`, ` for sshd[812] of uid 0`, or nothing."""
    if request.requester:
        who = request.requester
        whose = f" in {who.unit}" if who.unit else ""
        return (
            f" for {who.exe or who.comm}[{who.pid}] of uid {who.uid}{whose}{' in a container' if who.container else ''}"
        )
    if request.origin == "request":
        return " for one of several processes that asked at once" if request.ambiguous else " for the kernel"
    if not request.devices:
        return ""
    first = request.devices[0].rpartition("/")[2]
    return f" for {first}" if request.device_count < 2 else f" for {request.device_count} devices, first {first}"
