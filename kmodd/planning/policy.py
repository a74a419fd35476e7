"""Decide whether policy allows a module: rules and a `PolicyQuery` in, a `PolicyDecision` out. No I/O.

The first rule whose conditions all hold decides. If none does, the module is allowed, or, once sealed, denied.

The process that made the kernel ask may be unknown. Uncertainty then counts against it: an unknown user, unit, program
or container satisfies the conditions of deny rules only. The process is assumed not to be root: `uid=0` never holds for
it, and `uid=!0` always does. So it is for a thread of the kernel that acts for others (`Requester.is_deputy`).
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
from kmodd.errors import UnmatchedBracket, Where, assert_never
from kmodd.index import fnmatch
from kmodd.kernel.requester import Requester
from kmodd.names import underscores
from kmodd.planning.request import ORIGINS, Origin, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Final, Literal

    _Holds = Literal["yes", "no", "maybe"]
    _Check = Callable[["_Case"], _Holds]
    _Prepared = tuple[tuple[Rule, Callable[["_Case"], bool]], ...]
    """Rules, each with its test."""

SEALED: Final = "sealed, and no rule allows it"
"""Text in place of a rule's if the seal denies."""


@dataclass(frozen=True, slots=True)
class PolicyQuery:
    """Who requests what, and when. One query serves all modules of a plan."""

    origin: Origin
    request: str
    """`Request.text`, unchanged."""
    phase: Phase
    subsystem: str = ""
    devices: tuple[str, ...] = ()
    """Device paths, `/devices/…`. A module is allowed if it is allowed for one of them."""
    requester: Requester | None = None
    """None: for a request of the kernel, the process is unknown; for others, there is none."""
    flags: frozenset[str] = frozenset()
    """Names of the files in /run/kmodd/flags."""
    uptime: float = 0.0
    """Seconds since boot, suspend included (CLOCK_BOOTTIME)."""


def asking_of(request: Request, phase: Phase, flags: frozenset[str] = frozenset(), uptime: float = 0.0) -> PolicyQuery:
    """Return the query for `request`; uptime: `PolicyQuery.uptime`, seconds."""
    return PolicyQuery(
        request.origin, request.text, phase, request.subsystem, request.all_devices, request.requester, flags, uptime
    )


@dataclass(frozen=True, slots=True)
class PolicyDecision:
    """The decision about one module."""

    verdict: Verdict
    rule: Rule | None = None
    """The rule that decided; None: no rule matched."""
    enforced: bool = False
    """Whether the verdict is enforced. It is not in mode observe, unless sealed, or of a local rule."""

    @property
    def refused(self) -> bool:
        """Whether the module must not be loaded."""
        return self.verdict == "deny" and self.enforced

    @property
    def would_be_refused(self) -> bool:
        """Whether the module may be loaded, but the record must note that policy would deny it."""
        return self.verdict == "deny" and not self.enforced

    @property
    def is_local(self) -> bool:
        """Whether a rule of `kmodd deny` or `kmodd allow` decided."""
        return self.rule is not None and self.rule.is_local

    @property
    def at(self) -> Where | None:
        """Place of the rule, for `Skip.at`; None: no rule matched."""
        return self.rule.at if self.rule else None

    @property
    def text(self) -> str:
        """Text of the rule, for `Skip.rule`; SEALED if the seal denied; else empty."""
        if self.rule:
            return self.rule.text
        return SEALED if self.verdict == "deny" else ""


ALLOWED: Final = PolicyDecision("allow")
"""No rule matched, or policy is off."""


def strictest(decisions: Sequence[PolicyDecision]) -> PolicyDecision:
    """Return the first decision that refuses, else the first other one than a plain allow, else the first."""
    return next(
        (each for each in decisions if each.verdict == "deny"),
        next((each for each in decisions if each.verdict != "allow"), decisions[0]),
    )


class Policy:
    """An immutable set of rules."""

    __slots__ = ("_by_origin", "_has_device_rules", "_local_by_origin", "has_local", "mode", "rules")

    def __init__(self, mode: Mode, rules: Sequence[Rule] = ()) -> None:
        """`rules`: in the order in which they are tried."""
        self.mode: Final[Mode] = mode
        self.rules: Final = tuple(rules)
        self._has_device_rules = any(condition.key == "device" for rule in rules for condition in rule.conditions)
        prepared = [(rule, _test(rule)) for rule in self.rules]
        self.has_local: Final = any(rule.is_local for rule in self.rules)
        """Whether there are rules of `kmodd deny` and `kmodd allow`, which are enforced in every mode."""
        self._by_origin: dict[Origin, _Prepared] = {
            origin: tuple(pair for pair in prepared if _can_hold(pair[0], origin)) for origin in ORIGINS
        }
        self._local_by_origin: dict[Origin, _Prepared] = {
            origin: tuple(pair for pair in pairs if pair[0].is_local) for origin, pairs in self._by_origin.items()
        }

    def judge(self, asking: PolicyQuery, module: str) -> PolicyDecision:
        """Return the decision about `module`, which is the requested one or one of its dependencies.

        Mode off allows all modules until sealed, but for local rules. The seal is enforced in every mode.
        """
        sealed = asking.phase == "sealed"
        if self.mode == "off" and not sealed and not self.has_local:
            return ALLOWED
        name = module.replace("-", "_")
        enforced = sealed or self.mode == "enforce"
        if not enforced:
            local = self._first(self._local_by_origin[asking.origin], asking, name) if self.has_local else None
            if local and (local.verdict == "deny" or self.mode == "off"):
                return PolicyDecision(local.verdict, local, local.verdict == "deny")
            if self.mode == "off":
                return ALLOWED
        found = self._first(self._by_origin[asking.origin], asking, name)
        if found is None:
            return PolicyDecision("deny", None, enforced) if sealed else ALLOWED
        return PolicyDecision(found.verdict, found, enforced)

    def _first(self, rules: _Prepared, asking: PolicyQuery, name: str) -> Rule | None:
        """Return the first of `rules` that matches; of several devices, for the first that is allowed, if one is."""
        sealed = asking.phase == "sealed"
        found: Rule | None = None
        devices = asking.devices if self._has_device_rules else asking.devices[:1]
        for device in devices or ("",):
            found = next((rule for rule, fits in rules if fits(_Case(asking, name, device))), None)
            if (found is None and not sealed) or (found is not None and found.verdict != "deny"):
                break
        return found

    @property
    def refuses(self) -> bool:
        """Whether it can refuse something while it is not sealed."""
        return bool(self.rules) and (self.mode == "enforce" or self.has_local)

    @property
    def needs_requester(self) -> bool:
        """Whether it can refuse something for whom asks for it, or is enforced as a whole."""
        return self.mode == "enforce" or any(
            rule.is_local and rule.verdict == "deny" and any(each.key in OF_PROCESSES for each in rule.conditions)
            for rule in self.rules
        )


def rules_in_force(parsed: Parsed, valid: Sequence[Rule] | None) -> tuple[Rule, ...]:
    """Return the rules to apply: those of `parsed` or, if it has mistakes, rules that allow no more than `valid` do.

    With mistakes, the deny rules that could be read hold too. Without earlier rules, all requests of processes that are
    not known as root's are denied as well, because a line that could not be read may have meant them.

    valid: the last rules without a mistake; None: there are none.
    """
    if not parsed.problems:
        return parsed.rules
    denies = [rule for rule in parsed.rules if rule.verdict == "deny"]
    if valid is None:
        at = parsed.problems[0].at
        users = (Condition("uid", (), ("0",)),)
        return (*denies, Rule(at, "deny uid=!0 (policy.d is invalid)", "deny", users, replaces_mistake=True))
    known = {rule.conditions for rule in valid if rule.verdict == "deny"}
    return (*(rule for rule in denies if rule.conditions not in known), *valid)


# ── conditions ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Case:
    """A module to decide about, for one of the devices."""

    asking: PolicyQuery
    module: str
    """Module name, with `_`."""
    device: str
    """Device path; empty: no device."""


def _can_hold(rule: Rule, origin: Origin) -> bool:
    """Return whether the rule can match a request of this origin."""
    for condition in rule.conditions:
        if condition.key == "origin" and not _fits_word(condition, origin):
            return False
        if condition.key in OF_PROCESSES and origin not in ASKED_BY_PROCESSES:
            return False
    return True


def _test(rule: Rule) -> Callable[[_Case], bool]:
    """Return the rule as a function that ignores its origin, which `_can_hold` has checked."""
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
    """Return a condition as a function."""
    match condition.key:
        case "origin":
            return lambda case: _yes_no(_fits_word(condition, case.asking.origin))
        case "phase":
            return lambda case: _yes_no(_fits_word(condition, case.asking.phase))
        case "until":
            ends, begins = [*map(int, condition.wanted)], [*map(int, condition.unwanted)]
            return lambda case: _yes_no(
                (not ends or case.asking.uptime < max(ends)) and all(case.asking.uptime >= begin for begin in begins)
            )
        case "flag":
            wanted, unwanted = frozenset(condition.wanted), frozenset(condition.unwanted)
            return lambda case: _yes_no(
                bool(not wanted or wanted & case.asking.flags) and not unwanted & case.asking.flags
            )
        case "request":
            fits = _names(condition)
            return lambda case: _yes_no(fits(_normal(case.asking.request)))
        case "module":
            fits = _names(condition)
            return lambda case: _yes_no(fits(case.module))
        case "subsystem":
            fits = _patterns(condition)
            return lambda case: _yes_no(case.asking.subsystem != "" and fits(case.asking.subsystem))
        case "device":
            fits = _patterns(condition)
            return lambda case: _yes_no(case.device != "" and fits(case.device))
        case "uid" | "unit" | "container" | "exe":
            return _of_processes(condition)
        case _:
            assert_never(condition.key)


def _of_processes(condition: Condition) -> _Check:
    """Return a condition on uid, unit, container or exe as a function, for known and unknown processes."""
    known, unknown = _of_process(condition), _of_unknown_process(condition)

    def check(case: _Case) -> _Holds:
        who = case.asking.requester
        if who is not None and not who.is_deputy(case.asking.request):
            return known(who)
        return unknown if case.asking.origin == "request" else "no"

    return check


def _of_process(condition: Condition) -> Callable[[Requester], _Holds]:
    """Return the condition as a function of a known process, whose program may be unknown all the same."""
    match condition.key:
        case "uid":
            wanted, unwanted = _ranges(condition)
            return lambda process: _yes_no(
                (not wanted or _within(process.uid, wanted)) and not _within(process.uid, unwanted)
            )
        case "container":
            return lambda process: _yes_no(_fits_word(condition, "yes" if process.container else "no"))
        case "exe":
            fits = _patterns(condition)
            return lambda process: _yes_no(fits(process.exe)) if process.exe else "maybe"
        case _:
            fits = _patterns(condition)
            return lambda process: _yes_no(fits(process.unit or NONE))


def _of_unknown_process(condition: Condition) -> _Holds:
    """Return whether the condition holds for an unknown process, which is only known not to be root."""
    if condition.key != "uid":
        return "maybe"
    wanted, unwanted = _ranges(condition)
    users = (1, MAX_UID)
    if (wanted and not any(_overlap(users, each) for each in wanted)) or _covered(users, unwanted):
        return "no"
    if (not wanted or _covered(users, wanted)) and not any(_overlap(users, each) for each in unwanted):
        return "yes"
    return "maybe"


# ── helpers ──────────────────────────────────────────────────────────────────────────────────────────────────────────

_Range = tuple[int, int]


def _fits_word(condition: Condition, word: str) -> bool:
    return (not condition.wanted or word in condition.wanted) and word not in condition.unwanted


def _yes_no(holds: bool) -> _Holds:
    return "yes" if holds else "no"


@lru_cache(maxsize=1024)
def _normal(text: str) -> str:
    """Return a request's text as lookups normalise it. With an unmatched bracket it names nothing, so any form does."""
    try:
        return underscores(text)
    except UnmatchedBracket:
        return text.replace("-", "_")


def _names(condition: Condition) -> Callable[[str], bool]:
    """Return `_patterns` for request and module, where `-` and `_` are equal, as in every lookup."""
    wanted, unwanted = (tuple(map(underscores, values)) for values in (condition.wanted, condition.unwanted))
    return _patterns(Condition(condition.key, wanted, unwanted))


def _patterns(condition: Condition) -> Callable[[str], bool]:
    """Return a function: whether a text matches a wanted pattern, if there are any, and no unwanted one."""
    wanted, unwanted = _any_of(condition.wanted), _any_of(condition.unwanted)
    if not condition.wanted:
        return lambda text: not unwanted(text)
    return lambda text: wanted(text) and not unwanted(text)


def _any_of(patterns: tuple[str, ...]) -> Callable[[str], bool]:
    """Return a function: whether a text matches a pattern. All patterns without wildcards cost one set lookup."""
    from kmodd.index.fnmatch_regex import compiled  # only here: a boot without rules need not wait for `re`

    literal = frozenset(pattern for pattern in patterns if fnmatch.is_literal(pattern))
    others = [compiled(fnmatch.bytewise(pattern)) for pattern in patterns if pattern not in literal]

    def fits(text: str) -> bool:
        if text in literal:
            return True
        plain = fnmatch.bytewise(text) if others else ""
        return any(other(plain, 0) for other in others)

    return fits


def _ranges(condition: Condition) -> tuple[list[_Range], list[_Range]]:
    """Return the ranges of wanted and of unwanted uids."""
    wanted, unwanted = (
        [found for value in values if (found := uid_range(value))] for values in (condition.wanted, condition.unwanted)
    )
    return wanted, unwanted


def _within(uid: int, ranges: Iterable[_Range]) -> bool:
    return any(low <= uid <= high for low, high in ranges)


def _overlap(one: _Range, other: _Range) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def _covered(whole: _Range, ranges: Iterable[_Range]) -> bool:
    """Return whether the union of the ranges includes all of `whole`."""
    reached = whole[0]
    for low, high in sorted(ranges):
        if low <= reached <= high:
            reached = high + 1
    return reached > whole[1]
