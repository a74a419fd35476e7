"""The sentence of a journal record: first what, then for what, how long, and with what. No I/O."""

from __future__ import annotations

import errno as errors

from kmodd.planning.outcome import DRY_RUN, Outcome
from kmodd.planning.request import Request
from kmodd.text import duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from kmodd.errors import Where

USUAL = 100
"""Characters of a sentence in the usual case; lists of modules are cut there."""

_UNAMBIGUOUS = ("", "cpu", "pci")
"""Subsystems whose device names need no prefix."""

_PROCESSORS = "/devices/system/cpu"
"""Where the alias that all processors share stands (drivers/base/cpu.c)."""

_FOR_ANOTHER = ("dep", "softdep_pre", "softdep_post")
"""Causes of modules that another module of the plan needs."""


def subject_of(request: Request, name: str = "") -> str:
    """Return what a request is for: a device, a process, or who asked; empty if that is unknown.

    name: what the device is called; empty: unknown.
    """
    if who := request.requester:
        inside = " in a container" if who.container else ""
        process = f"{who.comm or _base(who.exe)}[{who.pid}]" if who.pid else "a process of"
        return f"{process} uid {who.uid}{inside}"
    match request.origin:
        case "request":
            return "one of several processes that asked at once" if request.ambiguous else "the kernel"
        case "operator":
            return "root"
        case "boot" if not request.devices:
            return "the boot list"
    if request.devices[:1] == (_PROCESSORS,):
        return "the processor"
    if not request.devices:
        return ""
    device = request.devices[0].rpartition("/")[2]
    if request.device_count > 1:
        kind = "" if request.subsystem in _UNAMBIGUOUS else f"{request.subsystem} "
        return f"{request.device_count} {kind}devices, first {device}"
    place = device if request.subsystem in _UNAMBIGUOUS else f"{request.subsystem} {device}"
    return f'{place} "{name}"' if name else place


def sentence_of(outcome: Outcome, name: str = "") -> str:
    """Return the sentence of one outcome. name: what the device of its request is called; empty: unknown."""
    subject = subject_of(outcome.request, name)
    whom = f" for {subject}" if subject else ""
    took, module, at = duration(outcome.duration_usec), outcome.module, outcome.at
    detail = f" ({outcome.detail})" if outcome.detail else ""
    needed = f" ({outcome.because})" if outcome.because.kind in _FOR_ANOTHER else ""
    match outcome.result:
        case "loaded":
            return f"Loaded {module}{whom} in {took}{needed}{detail}"
        case "live":
            return f"{module}{whom} is loaded already{needed}{detail}"
        case "builtin":
            return f"{module}{whom} is built into the kernel{needed}{detail}"
        case "blacklisted":
            return f"Not loading {module}{whom}: blacklisted at {at}"
        case "denied":
            return f"Denied {module}{whom}: {_short(at) if at else outcome.rule}"
        case "blocked":
            return f"Blocked {module}{whom}: {outcome.rule or 'the line'} at {at}"
        case "missing":
            missing = f"file {outcome.path} is missing" if outcome.path else "its file is not in the module tree"
            return f"Failed to load {module}{whom}: {missing}{needed}{detail}"
        case "failed":
            return f"Failed to load {module}{whom}: {_reason(outcome)}{needed}"
        case "crashed" if outcome.detail:
            return f"Crashed: {module}{whom} {outcome.detail}{needed}"
        case "crashed":
            return f"Crashed: {module}{whom} after {took}{needed}; it is not loaded again"
        case "stuck" if outcome.request.removing:
            return f"Stuck: removing {module} has been going on for {took}{detail}"
        case "stuck":
            since = (
                f"has been starting for {took}" if outcome.duration_usec else "is starting since before this request"
            )
            return f"Stuck: {module}{whom} {since}{needed}{f'; {outcome.detail}' * bool(detail)}"
        case "nomatch":
            return _no_match(outcome.request, subject)
        case "removed":
            idle = outcome.request.removing.idle_sec if outcome.request.removing else 0
            unused = f", unused for {idle}s" if idle else ""
            return f"Removed {module} in {took}{unused}{needed}{detail}"
        case "in_use":
            return f"Not removing {module}: it is in use"
        case "absent":
            return f"Not removing {module}: it is not loaded"
        case "not_removed":
            return f"Failed to remove {module}: {_reason(outcome)}{needed}"
        case "not_attempted":
            return _not_attempted(outcome, whom)


def sentence_of_load(goals: Sequence[str], others: Sequence[str], subject: str, usec: int) -> str:
    """Return the sentence of a request that loaded modules.

    goals: those of them that the request named, at least one. others: those that came with them, in load order.
    usec: duration in µs from the first to the last.
    """
    return _with_others("Loaded", goals, others, f" for {subject}" if subject else "", usec)


def sentence_of_removal(goals: Sequence[str], others: Sequence[str], unused: int, usec: int) -> str:
    """Return the sentence of a request that removed modules; as `sentence_of_load`.

    unused: seconds without use, after which the daemon removed them; 0: the removal was requested.
    """
    return _with_others("Removed", goals, others, f", unused for {unused}s," if unused else "", usec)


def foreign_part(outcome: Outcome, *, is_only: bool = True) -> str:
    """Return the end of a sentence about a module whose file is not root's alone; empty: it is.

    is_only: the sentence names no other module.
    """
    whose = "its" if is_only else f"{outcome.module}'s"
    return f"; {whose} file {outcome.foreign}" if outcome.foreign else ""


def _with_others(verb: str, goals: Sequence[str], others: Sequence[str], whom: str, usec: int) -> str:
    more = f" and {len(goals) - 1} more" if len(goals) > 1 else ""
    sentence = f"{verb} {goals[0]}{more}{whom} in {duration(usec)}"
    names = [*goals[1:], *others] if not more else others
    if not names:
        return sentence
    whole = f"{sentence}, with {' '.join(names)}"
    if len(whole) <= USUAL:
        return whole
    for count in range(len(names) - 1, 0, -1):
        cut = f"{sentence}, with {' '.join(names[:count])} and {len(names) - count} more"
        if len(cut) <= USUAL:
            return cut
    return f"{sentence}, with {len(names)} more"


def _no_match(request: Request, subject: str) -> str:
    if request.devices:
        head = f"No driver for {subject}: nothing matches "
        room = max(USUAL - len(head), 24)
        return head + (request.text if len(request.text) <= room else f"{request.text[: room - 1]}…")
    if request.origin == "boot" and request.at:
        return f"No module for {request.text}, listed at {request.at}"
    return f"No module for {request.text}, asked for by {subject}" if subject else f"No module for {request.text}"


def _not_attempted(outcome: Outcome, whom: str) -> str:
    module, detail = outcome.module, outcome.detail
    if outcome.request.removing:
        return f"Not removing {module}: {detail}"
    if detail == DRY_RUN and outcome.command:
        return f"Would run {outcome.command} at {outcome.at} for {module}{whom}; its effect is not known"
    if detail == DRY_RUN:
        return f"Would load {module}{whom}"
    return f"Not loading {module}{whom}: {detail}"


def _reason(outcome: Outcome) -> str:
    """Return errno and words of a failure."""
    code = errors.errorcode.get(outcome.errno, str(outcome.errno)) if outcome.errno else ""
    says = outcome.load_error.words if outcome.load_error else ""
    return ", ".join(part for part in (code, says, outcome.detail) if part)


def _short(at: Where) -> str:
    """Return the place of a line with the name of its file alone; the fields have the path."""
    return f"{_base(at.file)}:{at.line}"


def _base(path: str) -> str:
    return path.rpartition("/")[2]
