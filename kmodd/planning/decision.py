"""The journal records of a request: one for the decision, others for what went wrong. No I/O.

Modules that came as dependencies, or were there, are fields of that record; records of their own have level debug.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass, replace
from kmodd.errors import Where
from kmodd.kernel.requester import Requester
from kmodd.planning.outcome import Outcome, Result
from kmodd.planning.plan import Reason
from kmodd.planning.record import DEBUG, INFO, WARNING, Record, Subject, build_id_of, counted, priority_of, record_of
from kmodd.planning.request import Request
from kmodd.planning.sentence import foreign_part, sentence_of_load, sentence_of_removal, subject_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_NOT_READABLE = Where("(not readable)", 0)
"""In place of a line in a file that users cannot read."""

_TROUBLES: tuple[Result, ...] = ("failed", "crashed", "stuck", "denied", "blocked", "missing", "not_removed")
"""Results of any module of a plan that have a record of their own, which is never debug."""

_CHANGES: tuple[Result, ...] = ("loaded", "removed")
_NOT_DONE: tuple[Result, ...] = ("not_attempted", "blacklisted", "in_use", "absent")


@dataclass(frozen=True, slots=True)
class Times:
    """When a request was decided, all in µs."""

    begin: int = 0
    """When it came (CLOCK_MONOTONIC); 0: unknown."""
    wait: int = 0
    """From then to the first step of a loader."""
    duration: int = 0
    """From that step to the end."""


NO_TIMES = Times()


@dataclass(frozen=True, slots=True)
class Decision:
    """A request, and what became of it."""

    request: Request
    goals: tuple[str, ...]
    """The modules that it named."""
    outcomes: tuple[Outcome, ...]
    """Of its whole plan, in order; at least one."""
    times: Times = NO_TIMES

    @property
    def deciding(self) -> Outcome:
        """The outcome that its record is about.

        That of a goal which was loaded or removed, else of one that went wrong, else of one that was not tried.
        """
        own = [outcome for outcome in self.outcomes if outcome.module in self.goals and is_requested(outcome)]
        for results in (_CHANGES, _TROUBLES, _NOT_DONE):
            if found := next((outcome for outcome in own if outcome.result in results), None):
                return found
        return (own or self.outcomes)[0]

    @property
    def changed(self) -> tuple[Outcome, ...]:
        """The outcomes of the modules that were loaded or removed, in that order."""
        return tuple(outcome for outcome in self.outcomes if outcome.result in _CHANGES)


def is_requested(outcome: Outcome) -> bool:
    """Return whether the module was requested, not needed by another."""
    return outcome.because.kind in ("asked", "alias", "boot")


def has_own_record(outcome: Outcome) -> bool:
    """Return whether a module of a plan has a record at its own level: what went wrong, and what the policy logs.

    A module that is denied for the sake of another one has not.
    """
    is_logged = any(name == "KMODD_VERDICT" for name, _ in outcome.evidence)
    return (outcome.result in _TROUBLES or is_logged) and not outcome.of


def decision_record(decision: Decision, subject: Subject) -> Record:
    """Return the record of a decision."""
    outcome, changed, times = decision.deciding, decision.changed, decision.times
    record = record_of(outcome, 0, subject)
    sentence = record.message
    if outcome.result in _CHANGES and is_requested(outcome) and not outcome.detail:
        sentence = _sentence(decision, subject.device_name)
    fields = record.fields
    if changed:
        fields = (
            *(field for field in fields if field[0] not in ("KMODD_DURATION_USEC", "KMODD_BUILD_ID")),
            *(("KMODD_MODULES", each.module) for each in changed),
            *(("KMODD_INIT_USEC", f"{each.module}:{each.duration_usec}") for each in changed),
            *(build_id_of(each) for each in changed if each.build_id),
            *(("KMODD_REASON", f"{each.module}:{each.because}") for each in changed if not is_requested(each)),
            ("KMODD_DURATION_USEC", str(times.duration)),
        )
        if times.begin:
            begin, wait = str(times.begin), str(times.wait)
            fields = (*fields, ("KMODD_BEGIN_MONOTONIC_USEC", begin), ("KMODD_WAIT_USEC", wait))
    return replace(record, message=sentence, fields=fields, priority=_priority(decision))


def detail_record(outcome: Outcome, subject: Subject) -> Record:
    """Return the debug record of a module that is part of a decision."""
    return replace(record_of(outcome, 0, subject), priority=DEBUG)


def public_record(
    record: Record, about: Decision | Outcome, subject: Subject, uid: int, is_secret: Callable[[str], bool]
) -> Record:
    """Return a record as a user other than root may read it.

    Left out are processes of other users, commands and rules of the configuration, lines of files that this user cannot
    read, and what the kernel or a command has said. record: as root reads it. about, subject: what it was made from.
    is_secret: whether users cannot read a file.
    """
    if isinstance(about, Decision):
        shown = decision_record(
            replace(
                about,
                request=_public_request(about.request, uid, is_secret),
                outcomes=tuple(_public(outcome, uid, is_secret) for outcome in about.outcomes),
            ),
            subject,
        )
    else:
        shown = record_of(_public(about, uid, is_secret), 0, subject)
    hidden = {("KMODD_FILE", str(_NOT_READABLE)), ("KMODD_LINE", "0")}
    fields = tuple(field for field in shown.fields if field[1] and field not in hidden)
    repeated = next((int(value) for name, value in record.fields if name == "KMODD_REPEATED"), 0)
    return counted(replace(shown, fields=fields, priority=record.priority), repeated)


def _public(outcome: Outcome, uid: int, is_secret: Callable[[str], bool]) -> Outcome:
    """Return an outcome without what only root may read. A detail beside evidence may quote it."""
    because, at = outcome.because, outcome.at
    return replace(
        outcome,
        request=_public_request(outcome.request, uid, is_secret),
        because=Reason("asked", because.of) if because.at and is_secret(because.at.file) else because,
        at=_NOT_READABLE if at and is_secret(at.file) else at,
        rule="" if outcome.at else outcome.rule,
        command="",
        detail="" if outcome.evidence else outcome.detail,
        evidence=(),
    )


def _public_request(request: Request, uid: int, is_secret: Callable[[str], bool]) -> Request:
    """Return a request without the process that made it, if that is or may be another user's."""
    if request.at and is_secret(request.at.file):
        request = replace(request, at=None)
    if any(each.uid != uid for each in request.candidates):
        request = replace(request, candidates=())
    who = request.requester
    if who is None or who.uid == uid:
        return request
    return replace(request, requester=Requester(0, "", "", who.uid, None, "", "", container=who.container))


def _priority(decision: Decision) -> int:
    """Return the level of a decision: a request of the kernel is never debug, as its record is the history of use."""
    outcome = decision.deciding
    priority = priority_of(outcome)
    if any(each.foreign for each in decision.changed):
        priority = min(priority, WARNING)
    return min(priority, INFO) if outcome.request.origin == "request" and not outcome.request.removing else priority


def _sentence(decision: Decision, device_name: str) -> str:
    """Return the sentence of a decision that loaded or removed modules."""
    changed, usec = decision.changed, decision.times.duration
    goals = [each.module for each in changed if each.module in decision.goals and is_requested(each)]
    others = [each.module for each in changed if each.module not in goals]
    removing = decision.request.removing
    if removing:
        return sentence_of_removal(goals, others, removing.idle_sec, usec)
    foreign = "".join(foreign_part(each, is_only=len(changed) == 1) for each in changed)
    return sentence_of_load(goals, others, subject_of(decision.request, device_name), usec) + foreign
