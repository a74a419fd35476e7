"""Whether a module may be loaded: rules and a `PolicyQuery` in, a `PolicyDecision` out. Does not ask the machine.

The first rule of which every condition holds decides. Where none does, all is allowed; once sealed, nothing is.

A process that made the kernel ask may be unknown. Then what could be so counts against it: an unknown user, unit,
program or container fulfils the condition of a deny rule and not that of any other. Only one thing is taken for known:
that it is not root. So `uid=0` never holds for it and `uid=!0` always does.
"""

from __future__ import annotations

from functools import lru_cache

from kmodd.config.policy_d import (
    ASKED_BY_PROCESSES,
    MAX_UID,
    NONE,
    OF_PROCESSES,
    Condition,
    Mode,
    Parsed,
    Phase,
    Rule,
    Verdict,
    uid_range,
)
from kmodd.dataclass import dataclass
from kmodd.errors import Problem, UnmatchedBracket, Where, assert_never
from kmodd.index import fnmatch, fnmatch_regex
from kmodd.kernel.requester import Requester
from kmodd.names import underscores
from kmodd.planning.request import ORIGINS, Origin, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Final, Literal

    _Holds = Literal["yes", "no", "maybe"]
    _Check = Callable[["_Case"], _Holds]

SEALED: Final = "sealed, and no rule allows it"
"""What stands in place of a rule's text where the seal alone refuses."""


@dataclass(frozen=True, slots=True)
class PolicyQuery:
    """Who wants something loaded, and when. All modules of one plan are judged with the same."""

    origin: Origin
    request: str
    """Exactly as it came (`Request.text`)."""
    phase: Phase
    subsystem: str = ""
    devices: tuple[str, ...] = ()
    """Device paths, `/devices/…`. What one of them may have is loaded, as if each had asked by itself."""
    requester: Requester | None = None
    """None: unknown for a kernel's request; for anything else, that there is no process."""
    flags: frozenset[str] = frozenset()
    """The names that stand in /run/kmodd/flags."""


def asking_of(request: Request, phase: Phase, flags: frozenset[str] = frozenset()) -> PolicyQuery:
    """The asking behind a request."""
    return PolicyQuery(
        request.origin, request.text, phase, request.subsystem, request.all_devices, request.requester, flags
    )


@dataclass(frozen=True, slots=True)
class PolicyDecision:
    """What is to become of one module."""

    verdict: Verdict
    rule: Rule | None = None
    """The rule that decided; None: none did."""
    enforced: bool = False
    """The verdict counts. Not so in mode observe, unless sealed."""

    @property
    def refused(self) -> bool:
        """It is not to be loaded."""
        return self.verdict == "deny" and self.enforced

    @property
    def would_be_refused(self) -> bool:
        """It is to be loaded, and the record is to say that policy was against it."""
        return self.verdict == "deny" and not self.enforced

    @property
    def at(self) -> Where | None:
        """Where the rule stands, for `Skip.at`."""
        return self.rule.at if self.rule else None

    @property
    def text(self) -> str:
        """The rule as written, for `Skip.rule`; words of our own where the seal alone refuses; else nothing."""
        if self.rule:
            return self.rule.text
        return SEALED if self.verdict == "deny" else ""


ALLOWED: Final = PolicyDecision("allow")
"""No rule fitted, or nothing is judged."""


class Policy:
    """Rules that do not change, ready to judge."""

    __slots__ = ("_by_origin", "_looks_at_devices", "mode", "rules")

    def __init__(self, mode: Mode, rules: Sequence[Rule] = ()) -> None:
        """`rules`: in the order in which they are tried."""
        self.mode: Final[Mode] = mode
        self.rules: Final = tuple(rules)
        self._looks_at_devices = any(condition.key == "device" for rule in rules for condition in rule.conditions)
        prepared = [(rule, _test(rule)) for rule in self.rules]
        self._by_origin: dict[Origin, tuple[tuple[Rule, Callable[[_Case], bool]], ...]] = {
            origin: tuple(pair for pair in prepared if _can_hold(pair[0], origin)) for origin in ORIGINS
        }

    def judge(self, asking: PolicyQuery, module: str) -> PolicyDecision:
        """What is to become of `module`, which is the one asked for or one that it needs.

        In mode off nothing is judged before the seal. A seal counts in every mode.
        """
        sealed = asking.phase == "sealed"
        if self.mode == "off" and not sealed:
            return ALLOWED
        rules = self._by_origin[asking.origin]
        enforced = sealed or self.mode == "enforce"
        name = module.replace("-", "_")
        found: Rule | None = None
        devices = asking.devices if self._looks_at_devices else asking.devices[:1]
        for device in devices or ("",):
            found = next((rule for rule, fits in rules if fits(_Case(asking, name, device))), None)
            if (found is None and not sealed) or (found is not None and found.verdict != "deny"):
                break
        if found is None:
            return PolicyDecision("deny", None, enforced) if sealed else ALLOWED
        return PolicyDecision(found.verdict, found, enforced)


def load(mode: Mode, parsed: Parsed) -> Policy | tuple[Problem, ...]:
    """The policy in the files that were parsed; or what is wrong with them, and nothing else.

    Whoever reads them again keeps the old policy then. At the first start there is none: the rules of the sound lines
    (`parsed.rules`) are what is left.
    """
    return parsed.problems or Policy(mode, parsed.rules)


# ── conditions ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Case:
    """What is judged: one module, for one of the devices."""

    asking: PolicyQuery
    module: str
    """With `_`."""
    device: str
    """Empty: no device wants it."""


def _can_hold(rule: Rule, origin: Origin) -> bool:
    """Whether the rule can fit anything of this origin."""
    for condition in rule.conditions:
        if condition.key == "origin" and not _fits_word(condition, origin):
            return False
        if condition.key in OF_PROCESSES and origin not in ASKED_BY_PROCESSES:
            return False
    return True


def _test(rule: Rule) -> Callable[[_Case], bool]:
    """The rule as a function; its origin is not looked at again."""
    checks = [_check(condition) for condition in rule.conditions if condition.key != "origin"]
    denies = rule.verdict == "deny"

    def fits(case: _Case) -> bool:
        for check in checks:
            held = check(case)
            if held == "no" or (held == "maybe" and not denies):
                return False
        return True

    return fits


def _check(condition: Condition) -> _Check:
    """One condition as a function."""
    match condition.key:
        case "origin":
            return lambda case: _said(_fits_word(condition, case.asking.origin))
        case "phase":
            return lambda case: _said(_fits_word(condition, case.asking.phase))
        case "flag":
            wanted, unwanted = frozenset(condition.wanted), frozenset(condition.unwanted)
            return lambda case: _said(
                bool(not wanted or wanted & case.asking.flags) and not unwanted & case.asking.flags
            )
        case "request":
            fits = _names(condition)
            return lambda case: _said(fits(_normal(case.asking.request)))
        case "module":
            fits = _names(condition)
            return lambda case: _said(fits(case.module))
        case "subsystem":
            fits = _patterns(condition)
            return lambda case: _said(case.asking.subsystem != "" and fits(case.asking.subsystem))
        case "device":
            fits = _patterns(condition)
            return lambda case: _said(case.device != "" and fits(case.device))
        case "uid" | "unit" | "container" | "exe":
            return _of_processes(condition)
        case _:
            assert_never(condition.key)


def _of_processes(condition: Condition) -> _Check:
    """uid, unit, container, exe: of the process, if there is one; what it comes to where it is not known."""
    known, unknown = _of_process(condition), _of_nobody(condition)

    def check(case: _Case) -> _Holds:
        if case.asking.requester is not None:
            return known(case.asking.requester)
        return unknown if case.asking.origin == "request" else "no"

    return check


def _of_process(condition: Condition) -> Callable[[Requester], _Holds]:
    """The condition for a process that is known; of its program not even that is sure."""
    match condition.key:
        case "uid":
            wanted, unwanted = _ranges(condition)
            return lambda process: _said(
                (not wanted or _within(process.uid, wanted)) and not _within(process.uid, unwanted)
            )
        case "container":
            return lambda process: _said(_fits_word(condition, "yes" if process.container else "no"))
        case "exe":
            fits = _patterns(condition)
            return lambda process: _said(fits(process.exe)) if process.exe else "maybe"
        case _:
            fits = _patterns(condition)
            return lambda process: _said(fits(process.unit or NONE))


def _of_nobody(condition: Condition) -> _Holds:
    """The condition for an unknown process: maybe, but for what follows from its not being root."""
    if condition.key != "uid":
        return "maybe"
    wanted, unwanted = _ranges(condition)
    users = (1, MAX_UID)
    if (wanted and not any(_overlap(users, each) for each in wanted)) or _covered(users, unwanted):
        return "no"
    if (not wanted or _covered(users, wanted)) and not any(_overlap(users, each) for each in unwanted):
        return "yes"
    return "maybe"


# ── words for these ──────────────────────────────────────────────────────────────────────────────────────────────────

_Range = tuple[int, int]


def _fits_word(condition: Condition, word: str) -> bool:
    return (not condition.wanted or word in condition.wanted) and word not in condition.unwanted


def _said(holds: bool) -> _Holds:
    return "yes" if holds else "no"


@lru_cache(maxsize=1024)
def _normal(text: str) -> str:
    """A request's text as a look-up takes it. With a bracket that has no partner it names nothing; any form will do."""
    try:
        return underscores(text)
    except UnmatchedBracket:
        return text.replace("-", "_")


def _names(condition: Condition) -> Callable[[str], bool]:
    """As `_patterns`, for request and module: there `-` and `_` are the same, as in every look-up."""
    wanted, unwanted = (tuple(map(underscores, values)) for values in (condition.wanted, condition.unwanted))
    return _patterns(Condition(condition.key, wanted, unwanted))


def _patterns(condition: Condition) -> Callable[[str], bool]:
    """Whether a text fits one of the wanted patterns, and none of the unwanted."""
    wanted, unwanted = _any_of(condition.wanted), _any_of(condition.unwanted)
    if not condition.wanted:
        return lambda text: not unwanted(text)
    return lambda text: wanted(text) and not unwanted(text)


def _any_of(patterns: tuple[str, ...]) -> Callable[[str], bool]:
    """Whether a text fits one of the patterns; those without wildcards cost one look-up together."""
    literal = frozenset(pattern for pattern in patterns if fnmatch.is_literal(pattern))
    others = [fnmatch_regex.compiled(fnmatch.bytewise(pattern)) for pattern in patterns if pattern not in literal]

    def fits(text: str) -> bool:
        if text in literal:
            return True
        plain = fnmatch.bytewise(text) if others else ""
        return any(other(plain, 0) for other in others)

    return fits


def _ranges(condition: Condition) -> tuple[list[_Range], list[_Range]]:
    """Wanted and unwanted users."""
    wanted, unwanted = (
        [found for value in values if (found := uid_range(value))] for values in (condition.wanted, condition.unwanted)
    )
    return wanted, unwanted


def _within(uid: int, ranges: Iterable[_Range]) -> bool:
    return any(low <= uid <= high for low, high in ranges)


def _overlap(one: _Range, other: _Range) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def _covered(whole: _Range, ranges: Iterable[_Range]) -> bool:
    """Whether the ranges together hold all of `whole`."""
    reached = whole[0]
    for low, high in sorted(ranges):
        if low <= reached <= high:
            reached = high + 1
    return reached > whole[1]
