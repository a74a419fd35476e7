"""Edit the files of `kmodd deny` and `kmodd allow`: text in, text out. Lines of others are kept as they are.

Each line that a verb writes has a mark at its end, by which it is found again. New lines are put first, as the first
rule that matches decides.
"""

from __future__ import annotations

import re
import zlib

from kmodd.config.policy_d import ONCE, Condition, Rule, Verdict, parse_rule
from kmodd.dataclass import dataclass
from kmodd.errors import SyntaxProblem, Where

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_MARK = "  # by kmodd "
HEADER = (
    "# Rules of `kmodd deny` and `kmodd allow`: the first rule that matches decides, whatever Policy= says. The verbs\n"
    "# change only the lines with their mark; see kmodd-policy(5).\n"
)
MODPROBE_HEADER = (
    "# Written by `kmodd deny` for the time in which kmodd does not run; `kmodd allow MODULE` takes one out again.\n"
)
MODPROBE_END = "# End of the lines of `kmodd deny`; those below stay as they are.\n"
"""The line of DENY_FILE behind the own ones."""


@dataclass(frozen=True, slots=True)
class Change:
    """What to write about one module."""

    module: str
    """Name, with `_`."""
    whom: tuple[Condition, ...] = ()
    """A condition on the user or unit; empty: all."""
    why: str = ""
    """The reason, for the comment; one line."""
    limit: tuple[Condition, ...] = ()
    """The conditions that end the rule."""


def once_flag(module: str, whom: str = "") -> str:
    """Return the name of the flag for a single load. whom: a uid or a unit, none for all.

    A flag has letters, digits, `-` and `_`; units whose names differ in other characters get flags of their own.
    """
    if not whom:
        return f"{ONCE}{module}"
    plain = re.sub(r"[^A-Za-z0-9-]", "_", whom)
    return f"{ONCE}{module}-{plain[:60]}" + (f"-{zlib.crc32(whom.encode()):08x}" if plain != whom else "")


def is_module_name(text: str) -> bool:
    """Return whether a text can be the name of a module, with `-` or `_`."""
    return re.fullmatch(r"[A-Za-z0-9_-]{1,60}", text) is not None


def forbid(text: str, change: Change) -> str:
    """Return the text of policy.d with a rule that denies the module to `whom`, and without own ones that it replaces.

    A rule for all replaces those for some.
    """
    kept = [line for line in _lines(text) if not _is_replaced(line, change, "allow")]
    kept = [line for line in kept if not _is_replaced(line, change, "deny") or _is_own(line, "deny", change)]
    return _joined(text, _with_first("deny", change, kept))


def permit(text: str, change: Change, *, needs_rule: bool = False) -> str:
    """Return the text of policy.d without own rules that deny the module to `whom`; for all: without any of it.

    needs_rule: another rule denies it to `whom`, so that one is written that allows it, for a time with `limit`.
    """
    kept = [line for line in _lines(text) if not _is_replaced(line, change, "deny")]
    kept = [line for line in kept if not _is_replaced(line, change, "allow") or _is_own(line, "allow", change)]
    return _joined(text, _with_first("allow", change, kept) if needs_rule else kept)


def without_allows(text: str, change: Change) -> str:
    """Return the text without own rules that allow the module to `whom`; for all: to anyone."""
    return _joined(text, [line for line in _lines(text) if not _is_replaced(line, change, "allow")])


def pruned(text: str, uptime: float, flags: frozenset[str]) -> str:
    """Return the text without own rules whose time is over (seconds since boot), or whose single load was made."""
    kept = []
    for line in _lines(text):
        rule = _own_rule(line)
        if not any(_is_over(each, uptime, flags) for each in (rule.conditions if rule else ())):
            kept.append(line)
    return _joined(text, kept)


def denied_to_all(text: str) -> tuple[str, ...]:
    """Return the modules that own rules deny to all, in the order of their lines."""
    rules = filter(None, map(_own_rule, _lines(text)))
    return tuple(_module_of(rule) for rule in rules if rule.verdict == "deny" and len(rule.conditions) == 1)


def modprobe_lines(text: str, modules: Sequence[str]) -> str:
    """Return the text of DENY_FILE for the modules of `denied_to_all`; lines of others are kept behind the own ones.

    A softdep, of this kernel's modules or the next one's, would disable the install line (modprobe.d(5)). The first
    softdep line of a module counts, so an empty one is written.
    """
    before, header, rest = _split(text, MODPROBE_HEADER)
    _, end, behind = _split(rest, MODPROBE_END)
    foreign = before + (behind if end else rest if header else "")
    lines = []
    for module in sorted(set(modules)):
        lines += [f"blacklist {module}\n", f"install {module} /bin/false\n", f"softdep {module} pre:\n"]
    return "".join([MODPROBE_HEADER, *lines, MODPROBE_END, foreign] if lines else foreign)


def _split(text: str, line: str) -> tuple[str, str, str]:
    """Return the text before a line, the line, and the rest; it may end with CR LF, as some editors write it."""
    crlf = line.replace("\n", "\r\n")
    return text.partition(crlf if crlf in text else line)


# ── lines ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _line(verdict: Verdict, change: Change) -> str:
    conditions = (Condition("module", (change.module,)), *change.whom, *change.limit)
    why = f": {change.why}" if change.why else ""
    return f"{verdict:6} {' '.join(map(str, conditions))}{_MARK}{verdict}{why}\n"


def _with_first(verdict: Verdict, change: Change, lines: list[str]) -> list[str]:
    """Return the lines with the rule of a change, before all own lines on the module that say otherwise."""
    for line in lines:
        rule = _own_rule(line)
        if rule is None or _module_of(rule) != change.module:
            continue
        if _is_own(line, verdict, change):
            return lines
        if rule.verdict != verdict:
            break
    return [_line(verdict, change), *(line for line in lines if not _is_own(line, verdict, change))]


def _lines(text: str) -> list[str]:
    """Return the lines of a file without the header, each with its end."""
    return re.findall(r"[^\n]*\n|[^\n]+", text.removeprefix(HEADER))


def _joined(before: str, lines: list[str]) -> str:
    """Return the text of a file, with the header if it had that `before` or was empty; empty: it has no lines."""
    header = HEADER if not before or before.startswith(HEADER) else ""
    return header + "".join(lines) if lines else ""


def _own_rule(line: str) -> Rule | None:
    """Return the rule of an own line, None for a line of others or one that names more than one module."""
    text, mark, _ = line.partition(_MARK)
    if not mark:
        return None
    try:
        rule = parse_rule(text, Where("", 0))
    except (SyntaxProblem, ValueError):
        return None
    if not rule.conditions or rule.conditions[0].key != "module":
        return None
    names, excluded = rule.conditions[0].wanted, rule.conditions[0].unwanted
    return rule if len(names) == 1 and not excluded and is_module_name(names[0]) else None


def _module_of(rule: Rule) -> str:
    return rule.conditions[0].wanted[0]


def _is_over(condition: Condition, uptime: float, flags: frozenset[str]) -> bool:
    """Return whether a condition on the time or on a single load can hold no more."""
    if condition.key == "until" and condition.wanted:
        return max(map(int, condition.wanted)) <= uptime
    once = [flag for flag in condition.wanted if flag.startswith(ONCE)] if condition.key == "flag" else []
    return bool(once) and len(once) == len(condition.wanted) and not flags.intersection(once)


def _is_own(line: str, verdict: Verdict, change: Change) -> bool:
    """Return whether a line is an own one that says the same as the change, whatever its comment."""
    rule = _own_rule(line)
    wanted = (Condition("module", (change.module,)), *change.whom, *change.limit)
    return rule is not None and (rule.verdict, rule.conditions) == (verdict, wanted)


def _is_replaced(line: str, change: Change, verdict: Verdict) -> bool:
    """Return whether a line is an own one with this verdict on the module, for `whom` or, if that is all, for some."""
    rule = _own_rule(line)
    if rule is None or rule.verdict != verdict or _module_of(rule) != change.module:
        return False
    whom = tuple(each for each in rule.conditions[1:] if each.key in ("uid", "unit"))
    return not change.whom or [*map(_subject, whom)] == [*map(_subject, change.whom)]


def _subject(whom: Condition) -> tuple[str, ...]:
    """Return whom a condition is about: a user's uid without the ranges of subordinate ones, which may change."""
    rest = tuple(value for value in whom.wanted[1:] if "-" not in value or whom.key != "uid")
    return (whom.key, *whom.wanted[:1], *rest, *("!" + value for value in whom.unwanted))
