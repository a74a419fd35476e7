"""Rules out of experience: the journal's records of what the kernel asked for in, the text of a policy file out.

The rules allow what was used, by the kind of user who used it, and end with the refusal of all else that a process
makes the kernel ask for. Requests are widened in one way only: where at least two came to the same pattern of the
kernel's index and to no alias of their own, that pattern stands for them, `block-major-7-*` for the loop devices.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Literal

from kmodd.config.policy_d import Condition, Rule
from kmodd.dataclass import dataclass, field
from kmodd.errors import UnmatchedBracket, Where
from kmodd.index import fnmatch
from kmodd.kernel.requester import Requester
from kmodd.names import underscores
from kmodd.planning.policy import PolicyQuery
from kmodd.planning.request import ORIGINS, Origin
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Final

Who = Literal["root", "service", "user", "container", "unknown"]
"""service, user: users 1 to 999, and from 1000 on. container: anybody in one."""

_UIDS: Final[dict[Who, str]] = {"root": "0", "service": "1-999", "user": "1000-"}
_INSIDE: Final = (Condition("container", ("yes",)),)
_OUTSIDE: Final = (Condition("container", ("no",)),)
_USED: Final = ("loaded", "live")
"""The results that say the request got what it asked for."""
_FOR_ANOTHER: Final = ("dependency of ", "softdep of ")
"""Reasons of modules that came along with the one that was asked for."""
_WIDTH: Final = 100
"""So long is a list of requests at most; the next one is in a rule of its own."""
_ORIGINS: dict[str, Origin] = {origin: origin for origin in ORIGINS}


@dataclass(frozen=True, slots=True)
class Use:
    """One request of the kernel that got what it asked for."""

    request: str
    pattern: str
    """The alias pattern that it matched; empty: none."""
    who: Who
    exe: str = ""
    unit: str = ""
    usec: int = 0
    """When, in µs since 1970; 0: not said."""


@dataclass(slots=True)
class Uses:
    """What a journal has of them."""

    uses: list[Use] = field(default_factory=list)
    distrusted: int = 0
    """Records that say they are kmodd's and were not written by root: anybody can write such."""
    unreadable: int = 0
    """Lines that are no record in JSON."""


def read(lines: Iterable[str]) -> Uses:
    """The uses among the records that `journalctl --output=json --all` prints, one a line."""
    found = Uses()
    for line in lines:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            found.unreadable += 1
        elif text_of(record, "SYSLOG_IDENTIFIER") == "kmodd" and text_of(record, "KMODD_SOURCE") == "request":
            if text_of(record, "_UID") != "0":
                found.distrusted += 1
            elif use := _use(record):
                found.uses.append(use)
    return found


def suggest(uses: Sequence[Use], unit: str = "") -> str:
    """The rules that allow these uses and refuse all else that the kernel is asked for; with `unit`, for that alone."""
    those_of_unit = [use for use in uses if not unit or use.unit == unit]
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
    lines += ["", "# whatever else a process makes the kernel ask for", str(_rule("deny", origin, *of_unit))]
    return "".join(line + "\n" for line in lines[1:])


# ── records ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _use(record: Mapping[str, object]) -> Use | None:
    """The use that a trusted record tells of, if it does."""
    if text_of(record, "KMODD_RESULT") not in _USED or text_of(record, "KMODD_BECAUSE").startswith(_FOR_ANOTHER):
        return None
    request = text_of(record, "KMODD_ALIAS")
    uid, container = text_of(record, "KMODD_REQUESTER_UID"), text_of(record, "KMODD_REQUESTER_CONTAINER")
    usec = text_of(record, "__REALTIME_TIMESTAMP")
    return Use(
        request,
        text_of(record, "KMODD_PATTERN"),
        _who(uid, container),
        text_of(record, "KMODD_REQUESTER_EXE"),
        text_of(record, "KMODD_REQUESTER_UNIT"),
        int(usec) if re.fullmatch("[0-9]{1,18}", usec, re.ASCII) else 0,
    )


def text_of(record: Mapping[str, object], name: str) -> str:
    """A field as text; of one that stands there several times the first; bytes come as a list of numbers."""
    value = record.get(name)
    if isinstance(value, list) and value and not isinstance(value[0], int):
        value = value[0]
    if isinstance(value, list):
        numbers = [number for number in value if isinstance(number, int) and 0 <= number < 256]
        return decode(bytes(numbers))
    return value if isinstance(value, str) else ""


def _who(uid: str, container: str) -> Who:
    if not re.fullmatch("[0-9]{1,10}", uid, re.ASCII):
        return "unknown"
    if container == "yes":
        return "container"
    return "root" if int(uid) == 0 else "service" if int(uid) < 1000 else "user"


# ── seal ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def sealed_asking(record: Mapping[str, object], flags: frozenset[str]) -> tuple[PolicyQuery, str] | None:
    """(who asked, as if all had been sealed, and the module) of a record of the journal; None: nothing was loaded.

    Records that root did not write do not count: anybody can write to the journal in kmodd's name.
    """
    origin = _ORIGINS.get(text_of(record, "KMODD_SOURCE"))
    if text_of(record, "_UID") != "0" or text_of(record, "KMODD_RESULT") != "loaded" or origin is None:
        return None
    device = text_of(record, "KMODD_DEVPATH")
    asking = PolicyQuery(
        origin, text_of(record, "KMODD_ALIAS"), "sealed", text_of(record, "KMODD_SUBSYSTEM"),
        (device,) if device else (), _requester(record), flags,
    )  # fmt: skip
    return asking, text_of(record, "KMODD_MODULE")


def _requester(record: Mapping[str, object]) -> Requester | None:
    uid, pid = text_of(record, "KMODD_REQUESTER_UID"), text_of(record, "KMODD_REQUESTER_PID")
    if not (uid.isdecimal() and pid.isdecimal()):
        return None
    exe, unit = text_of(record, "KMODD_REQUESTER_EXE"), text_of(record, "KMODD_REQUESTER_UNIT")
    container = text_of(record, "KMODD_REQUESTER_CONTAINER") == "yes"
    return Requester(int(pid), "", exe, int(uid), None, "", unit, container)


# ── rules ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _widened(uses: Iterable[Use]) -> dict[str, str]:
    """Request → the pattern that stands for it and for another one at least."""
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
    """Whether it came by a pattern with wildcards, one that can stand in a rule."""
    if fnmatch.is_literal(use.pattern) or _literal(use.pattern, keep="*?[]") != use.pattern:
        return False
    try:
        return fnmatch.literal_start(use.pattern) != "" and fnmatch.matches(
            underscores(use.pattern), underscores(use.request)
        )
    except UnmatchedBracket:
        return False


def _literal(text: str, keep: str = "") -> str:
    """The text as a pattern in a line: each byte that is special or cannot stand there becomes `?`."""
    return "".join(
        char if char in keep or (char.isprintable() and char not in '*?[]\\"') else "?" * len(fnmatch.bytewise(char))
        for char in text
    )


def _by_conditions(uses: Sequence[Use]) -> list[tuple[tuple[Condition, ...], list[Use]]]:
    """Whom a request is to be allowed for. Where one user is not known, for all: no condition fits the unknown."""
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
    """For sorting: by user, then containers, then what is for all."""
    return not conditions, conditions == _INSIDE, " ".join(map(str, conditions))


def _title(conditions: tuple[Condition, ...]) -> str:
    if not conditions:
        return "allowed for all: of some of these nobody knows who asked"
    if conditions == _INSIDE:
        return "in a container"
    if conditions == _OUTSIDE:
        return "in no container: any user"
    return f"in no container: uid {' and '.join(conditions[0].wanted)}"


def _lists(items: Iterable[str]) -> list[list[str]]:
    """The items in lists that fit into a line, those of one family together."""
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
    """`net` of net-pf-38, `crypto` of crypto-sha256; what has no such beginning is one family."""
    first, separator, _ = re.sub("[:_]", "-", item).partition("-")
    return first if separator else ""


def _natural(item: str) -> list[tuple[int, str]]:
    """For sorting: net-pf-9 before net-pf-38."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"([0-9]{1,9})", item)]


def _rule(verdict: Literal["allow", "deny"], *conditions: Condition) -> Rule:
    return Rule(Where("", 0), "", verdict, conditions)


def _about(uses: Sequence[Use]) -> str:
    """How often, and by which programs; the two that did so most are named."""
    times = "once" if len(uses) == 1 else f"{len(uses)} times"
    programs = Counter(use.exe for use in uses if use.exe)
    named = [_literal(exe) for exe, _ in programs.most_common(2)]
    more = [f"{len(programs) - 2} more"] if len(programs) > 2 else []
    return ", ".join([times, *named, *more])
