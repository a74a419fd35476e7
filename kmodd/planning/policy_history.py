"""Derive policy from the journal's records of earlier loads: suggested rules, and queries that rehearse a seal.

The suggested rules allow what was used, by the kind of user that used it, and deny all other requests that processes
make the kernel send. Requests are generalised in one way only: if at least two matched the same pattern of the kernel's
index, and no alias of their own, the rule has that pattern, `block-major-7-*` for the loop devices.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Literal

from kmodd.config.policy_d import Condition, Rule
from kmodd.dataclass import dataclass, field
from kmodd.errors import UnmatchedBracket, Where
from kmodd.index import fnmatch
from kmodd.kernel.requester import Requester
from kmodd.names import underscores
from kmodd.planning.history import Entry, Ignored, entries_of
from kmodd.planning.policy import PolicyQuery
from kmodd.planning.request import ORIGINS, Origin

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Final

Who = Literal["root", "service", "user", "container", "unknown"]
"""service: uids 1 to 999. user: uids from 1000. container: any user in a container."""

_UIDS: Final[dict[Who, str]] = {"root": "0", "service": "1-999", "user": "1000-"}
_INSIDE: Final = (Condition("container", ("yes",)),)
_OUTSIDE: Final = (Condition("container", ("no",)),)
_USED: Final = ("loaded", "live")
"""Results of requests that succeeded."""
_REMOVALS: Final = ("removed", "not_removed", "in_use", "absent")
_WIDTH: Final = 100
"""Maximum length of the list of requests in one rule, in characters."""
_ORIGINS: dict[str, Origin] = {origin: origin for origin in ORIGINS}


@dataclass(frozen=True, slots=True)
class Use:
    """A request of the kernel that succeeded."""

    request: str
    pattern: str
    """The alias pattern that the request matched; empty: none."""
    who: Who
    exe: str = ""
    unit: str = ""
    usec: int = 0
    """Time in µs since 1970; 0: unknown."""


@dataclass(slots=True)
class Uses:
    """The uses that a journal records."""

    uses: list[Use] = field(default_factory=list)
    distrusted: int = 0
    """Number of records in kmodd's name that root did not write; any user can write such."""
    unreadable: int = 0
    """Number of lines that are not a JSON object."""


def read(lines: Iterable[str]) -> Uses:
    """Return the uses in the output of `journalctl --output=json --all`, which has one record per line."""
    ignored = Ignored()
    return Uses(uses_of(entries_of(lines, ignored)), ignored.distrusted, ignored.unreadable)


def uses_of(entries: Iterable[Entry]) -> list[Use]:
    """Return the uses that these entries record."""
    return [use for entry in entries for use in _uses(entry)]


def suggest(uses: Sequence[Use], unit: str = "") -> str:
    """Return the text of rules that allow these uses and deny all other requests of the kernel.

    unit: restrict the rules to the uses and requests of this unit; empty: all. Without any use, the text is empty.
    """
    those_of_unit = [use for use in uses if not unit or use.unit == unit]
    if not those_of_unit:
        return ""
    widened = _widened(those_of_unit)
    by_item: dict[str, list[Use]] = {}
    for use in those_of_unit:
        by_item.setdefault(widened.get(use.request) or _literal(use.request), []).append(use)
    groups: dict[tuple[Condition, ...], dict[str, list[Use]]] = {}
    for item, those in by_item.items():
        for conditions, its in _by_conditions(those):
            groups.setdefault(conditions, {}).setdefault(item, []).extend(its)
    of_unit = (Condition("unit", (_literal(unit),)),) if unit else ()
    origin = Condition("origin", ("request",))
    lines: list[str] = []
    for conditions in sorted(groups, key=_place):
        lines += ["", f"# {_title(conditions)}"]
        for items in _lists(groups[conditions]):
            rule = _rule("allow", origin, Condition("request", tuple(items)), *conditions, *of_unit)
            lines.append(f"{rule}  # {_about([use for item in items for use in groups[conditions][item]])}")
    lines += ["", "# all other requests that processes make the kernel send", str(_rule("deny", origin, *of_unit))]
    return "".join(line + "\n" for line in lines[1:])


# ── records ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _uses(entry: Entry) -> list[Use]:
    """Return the uses in an entry: one for each process that may have asked; none if it records something else."""
    if entry.source != "request" or entry.result not in _USED or entry.is_detail or entry.is_for_another:
        return []
    return [
        Use(entry.alias, entry.pattern, "unknown", usec=entry.realtime)
        if who is None or who.is_deputy(entry.alias)
        else Use(entry.alias, entry.pattern, _who(who), who.exe, who.unit, entry.realtime)
        for who in _askers(entry)
    ]


def _askers(entry: Entry) -> tuple[Requester | None, ...]:
    """Return the processes of whom one has asked; None: unknown, or no process has."""
    return entry.candidates if entry.requester is None and entry.candidates else (entry.requester,)


def _who(requester: Requester) -> Who:
    if requester.container:
        return "container"
    return "root" if requester.uid == 0 else "service" if requester.uid < 1000 else "user"


# ── seal ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def sealed_asking(entry: Entry, flags: frozenset[str]) -> tuple[tuple[PolicyQuery, ...], tuple[str, ...]] | None:
    """Return the queries of an entry, with phase sealed, and its modules; None if it records no load.

    There is one query for each process that may have asked: the strictest decision holds, as in the daemon.
    """
    origin = _ORIGINS.get(entry.source)
    if origin is None or entry.is_detail or entry.result in _REMOVALS or not entry.changed:
        return None
    queries = (
        PolicyQuery(origin, entry.alias, "sealed", entry.subsystem, entry.devices[:1], who, flags)
        for who in _askers(entry)
    )
    return tuple(queries), entry.changed


# ── rules ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _widened(uses: Iterable[Use]) -> dict[str, str]:
    """Return, by request, the pattern to use instead; a pattern replaces at least two requests."""
    wide: dict[str, set[str]] = {}
    named = set()
    for use in uses:
        if _is_wide(use):
            wide.setdefault(use.pattern, set()).add(use.request)
        else:
            named.add(use.request)
    return {
        request: pattern
        for pattern, requests in sorted(wide.items())
        if len(requests - named) > 1
        for request in requests - named
    }


def _is_wide(use: Use) -> bool:
    """Return whether the request matched a pattern with wildcards that a rule can contain."""
    if fnmatch.is_literal(use.pattern) or _literal(use.pattern, keep="*?[]") != use.pattern:
        return False
    try:
        return fnmatch.literal_start(use.pattern) != "" and fnmatch.matches(
            underscores(use.pattern), underscores(use.request)
        )
    except UnmatchedBracket:
        return False


def _literal(text: str, keep: str = "") -> str:
    """Return a text as pattern for a rule: each byte that is special or not printable becomes `?`."""
    return "".join(
        char if char in keep or (char.isprintable() and char not in '*?[]\\"') else "?" * len(fnmatch.bytewise(char))
        for char in text
    )


def _by_conditions(uses: Sequence[Use]) -> list[tuple[tuple[Condition, ...], list[Use]]]:
    """Return the conditions under which to allow a request, each with its uses.

    If one user is unknown, there are none: an unknown user satisfies no condition of an allow rule.
    """
    who = {use.who for use in uses}
    if "unknown" in who:
        return [((), list(uses))]
    found = []
    inside = [use for use in uses if use.who == "container"]
    outside = [use for use in uses if use.who != "container"]
    if outside:
        uids = tuple(uid for name, uid in _UIDS.items() if name in who)
        by_uid = () if len(uids) == len(_UIDS) else (Condition("uid", uids),)
        found.append(((*by_uid, *_OUTSIDE), outside))
    if inside:
        found.append((_INSIDE, inside))
    return found


def _place(conditions: tuple[Condition, ...]) -> tuple[bool, bool, str]:
    """Sort key of a group: users, then containers, then rules for all."""
    return not conditions, conditions == _INSIDE, " ".join(map(str, conditions))


def _title(conditions: tuple[Condition, ...]) -> str:
    if not conditions:
        return "allowed for all: some requesters are unknown"
    if conditions == _INSIDE:
        return "in a container"
    if conditions == _OUTSIDE:
        return "outside of containers: any user"
    return f"outside of containers: uid {' and '.join(conditions[0].wanted)}"


def _lists(items: Iterable[str]) -> list[list[str]]:
    """Split the items into lists of at most _WIDTH characters, one family per list."""
    lists: list[list[str]] = []
    family = ""
    for item in sorted(items, key=lambda item: (_family(item), _natural(item))):
        full = bool(lists) and len(",".join([*lists[-1], item])) > _WIDTH
        if not lists or full or _family(item) != family:
            lists.append([])
        family = _family(item)
        lists[-1].append(item)
    return lists


def _family(item: str) -> str:
    """Return `net` for net-pf-38, `crypto` for crypto-sha256, and nothing for an item without such a prefix."""
    first, separator, _ = re.sub("[:_]", "-", item).partition("-")
    return first if separator else ""


def _natural(item: str) -> list[tuple[int, str]]:
    """Sort key that orders net-pf-9 before net-pf-38."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"([0-9]{1,9})", item)]


def _rule(verdict: Literal["allow", "deny"], *conditions: Condition) -> Rule:
    return Rule(Where("", 0), "", verdict, conditions)


def _about(uses: Sequence[Use]) -> str:
    """Return the comment of a rule: number of uses, the two most frequent programs, number of others."""
    times = "once" if len(uses) == 1 else f"{len(uses)} times"
    programs = Counter(use.exe for use in uses if use.exe)
    named = [_literal(exe) for exe, _ in programs.most_common(2)]
    more = [f"{len(programs) - 2} more"] if len(programs) > 2 else []
    return ", ".join([times, *named, *more])
