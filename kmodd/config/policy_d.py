"""Parse policy.d into `Parsed`: the rules in order, and a `Problem` for each invalid line.

    # which modules may be loaded for which request; the first matching rule decides
    allow  module=usb_storage
    deny   origin=request request=net-pf-*,algif-* uid=!0     # not for users
    log    origin=operator
    deny   *

A rule is `allow`, `deny` or `log`, and conditions KEY=VALUE that must all hold, or `*` for every request. Values of a
condition are separated by commas: one of them must match, and none of those after a `!`. A value with a blank or comma
is enclosed in double quotes. `#` at the beginning of a word begins a comment.

Files are selected and sorted as those of modprobe.d (`modprobe_d.ordered`).
"""

from __future__ import annotations

from kmodd.config.modprobe_d import ConfFile
from kmodd.dataclass import dataclass
from kmodd.errors import Problem, SyntaxProblem, UnmatchedBracket, Where
from kmodd.names import underscores

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Final, Literal

    Verdict = Literal["allow", "deny", "log"]
    Mode = Literal["off", "observe", "enforce"]
    Phase = Literal["boot", "running", "sealed"]
    Key = Literal[
        "origin", "request", "module", "subsystem", "device", "uid", "unit", "container", "exe", "phase", "flag",
        "until",
    ]  # fmt: skip
else:
    Verdict = Mode = Phase = Key = str

VERDICTS: Final[tuple[Verdict, ...]] = ("allow", "deny", "log")
"""log: allow, and name the rule in the record."""
MODES: Final[tuple[Mode, ...]] = ("off", "observe", "enforce")
"""off: do not evaluate rules. observe: load, and record what would have been refused. enforce: refuse."""
PHASES: Final[tuple[Phase, ...]] = ("boot", "running", "sealed")
"""boot: until the first coldplug is complete. sealed: after `kmodd seal`; what no rule allows is refused."""
KEYS: Final[tuple[Key, ...]] = (
    "origin", "request", "module", "subsystem", "device", "uid", "unit", "container", "exe", "phase", "flag", "until",
)  # fmt: skip
WORDS: Final[dict[str, tuple[str, ...]]] = {
    "origin": ("uevent", "coldplug", "request", "boot", "operator", "reconcile"),
    "phase": PHASES,
    "container": ("yes", "no"),
}
"""Key → its valid values. The origins are those of `kmodd.planning.request`."""
OF_PROCESSES: Final = ("uid", "unit", "container", "exe")
"""Keys that test the requesting process; they never hold for a request without one (of a device or the boot list)."""
ASKED_BY_PROCESSES: Final = ("request", "operator")
"""Origins of requests by a process."""
OF_DEVICES: Final = ("subsystem", "device")
"""Keys that test the requesting device; they never hold for a request without one."""
NONE: Final = "-"
"""Value of unit= for processes without a unit, such as kernel threads."""
LOCAL: Final = "/etc/kmodd/policy.d/05-local.conf"
"""The file of `kmodd deny` and `kmodd allow`. Its rules are enforced in every mode."""
TEMPORARY: Final = "/run/kmodd/policy.d/04-until-boot.conf"
"""The rules of `kmodd allow` with a time limit; the next boot has none of them."""
ONCE: Final = "once-"
"""How the flag of a rule begins that allows a single load; the daemon removes the flag."""
MAX_UID: Final = 2**32 - 2
"""The highest user ID; (uid_t) -1 is none (chown(2))."""


@dataclass(frozen=True, slots=True)
class Condition:
    """`KEY=VALUE,…`: holds if one of `wanted` matches (or there are none) and none of `unwanted` does."""

    key: Key
    wanted: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()

    def __str__(self) -> str:
        values = [*map(_quoted, self.wanted), *("!" + _quoted(value) for value in self.unwanted)]
        return f"{self.key}={','.join(values)}"


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, from one line of a file."""

    at: Where
    text: str
    """As written, without comment and surrounding blanks, for messages."""
    verdict: Verdict
    conditions: tuple[Condition, ...]
    """All must hold; a rule without conditions matches every request."""
    replaces_mistake: bool = False
    """Whether it stands for a line that could not be read; the mode decides whether it is enforced."""

    @property
    def is_local(self) -> bool:
        """Whether the rule is one of LOCAL or TEMPORARY."""
        return self.at.file in (LOCAL, TEMPORARY) and not self.replaces_mistake

    def __str__(self) -> str:
        """Return a line of policy.d with the same meaning."""
        return " ".join([self.verdict, *map(str, self.conditions)] if self.conditions else [self.verdict, "*"])


@dataclass(frozen=True, slots=True)
class Parsed:
    """The rules of all files, and their problems."""

    rules: tuple[Rule, ...] = ()
    problems: tuple[Problem, ...] = ()


def parse(files: Iterable[ConfFile]) -> Parsed:
    """Parse all files, sorted by `modprobe_d.ordered`. Raises nothing; an invalid line is a Problem, not a rule."""
    rules: list[Rule] = []
    problems: list[Problem] = []
    for file in files:
        for number, line in enumerate(file.text.split("\n"), 1):
            at = Where(file.path, number)
            try:
                rules += _rules_of(line, at)
            except SyntaxProblem as bad:
                problems.append(Problem(at, bad.index + 1, line, bad.expected))
    return Parsed(tuple(rules), tuple(problems))


def parse_rule(text: str, at: Where) -> Rule:
    """Return the rule of a single line. Raises SyntaxProblem, ValueError if the line has none."""
    (rule,) = _rules_of(text, at)
    return rule


def uid_range(text: str) -> tuple[int, int] | None:
    """Return the first and last user ID of `5`, `5-9` or `5-`, or None for any other text."""
    import re  # here and below only: a boot without rules need not wait for it

    match = re.fullmatch(r"([0-9]{1,10})(?:(-)([0-9]{1,10})?)?", text, re.ASCII)
    if match is None:
        return None
    low = int(match[1])
    high = int(match[3]) if match[3] else MAX_UID if match[2] else low
    return (low, high) if low <= high <= MAX_UID else None


# ── lines ────────────────────────────────────────────────────────────────────────────────────────────────────────────

_BLANK = " \t\r\v\f"
_WORD = r'(?:"[^"]*"|[^" \t\r\v\f])+'
"""Text up to a blank outside of quotes."""
_VALUE = r'(!?)(?:"([^"]*)"|([^",]*))'


def _rules_of(line: str, at: Where) -> Iterator[Rule]:
    """Yield the rule of a line, if any. Raises SyntaxProblem."""
    if "\0" in line:
        raise SyntaxProblem(
            line.index("\0"), "expected a rule without NUL bytes; restore the file, which may be damaged"
        )
    words = list(_words(line))
    if not words:
        return
    start, first = words[0]
    verdict = next((verdict for verdict in VERDICTS if verdict == first), None)
    if verdict is None:
        raise SyntaxProblem(start, f"expected {_alternatives(VERDICTS)}")
    end = words[-1][0] + len(words[-1][1])
    if len(words) == 1:
        raise SyntaxProblem(end, "expected a condition such as origin=request, or * for every request")
    conditions: dict[Key, Condition] = {}
    if [word for _, word in words[1:]] != ["*"]:
        for index, word in words[1:]:
            condition = _condition(word, index)
            if condition.key in conditions:
                raise SyntaxProblem(index, f"{condition.key}= is given twice; separate several values by commas")
            conditions[condition.key] = condition
            _check_together(conditions, index)
    yield Rule(at, line[start:end], verdict, tuple(conditions.values()))


def _words(line: str) -> Iterator[tuple[int, str]]:
    """Yield index and text of each word before the comment. Raises SyntaxProblem for an unclosed quote."""
    import re

    index = 0
    while index < len(line):
        if line[index] in _BLANK:
            index += 1
            continue
        if line[index] == "#":
            return
        match = re.compile(_WORD).match(line, index)
        end = match.end() if match else index
        if end < len(line) and line[end] == '"':
            raise SyntaxProblem(end, 'expected a second " after this one')
        yield index, line[index:end]
        index = end


def _condition(word: str, index: int) -> Condition:
    """Parse `KEY=VALUE,…`. index: its position in the line. Raises SyntaxProblem."""
    name, equals, values = word.partition("=")
    key = next((key for key in KEYS if key == name), None)
    if key is None or not equals:
        hint = "expected KEY=VALUE" if not equals else f"unknown condition {name!r}"
        raise SyntaxProblem(index, f"{hint}; conditions are {', '.join(KEYS)}")
    wanted: list[str] = []
    unwanted: list[str] = []
    for place, negated, value in _values(values, index + len(name) + 1):
        _check(key, value, place)
        (unwanted if negated else wanted).append(value)
    return Condition(key, tuple(wanted), tuple(unwanted))


def _values(text: str, index: int) -> Iterator[tuple[int, bool, str]]:
    """Yield the position of each value, whether a `!` precedes it, and its text without quotes."""
    import re

    at = 0
    while True:
        match = re.compile(_VALUE).match(text, at)
        assert match is not None  # the expression matches the empty string
        value = match[2] if match[2] is not None else match[3]
        start = index + at + len(match[1])
        if not value:
            raise SyntaxProblem(start, "expected a value")
        yield start, bool(match[1]), value
        at = match.end()
        if at == len(text):
            return
        if text[at] != ",":
            raise SyntaxProblem(index + at, "expected a comma or a blank here")
        at += 1


def _check(key: Key, value: str, index: int) -> None:
    """Raise SyntaxProblem if `value` is invalid for `key`."""
    import re

    if key in WORDS:
        if value not in WORDS[key]:
            raise SyntaxProblem(index, f"expected {_alternatives(WORDS[key])}")
    elif key == "uid":
        if uid_range(value) is None:
            raise SyntaxProblem(index, f"expected a user ID up to {MAX_UID}, or a range: 0, 1000-, 1-999")
    elif key == "until":
        if not re.fullmatch(r"[0-9]{1,10}", value):
            raise SyntaxProblem(index, "expected seconds since boot, suspend included (CLOCK_BOOTTIME)")
    elif key == "flag":
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", value):
            raise SyntaxProblem(index, "expected the name of a file in /run/kmodd/flags: letters, digits, - and _")
    elif key in ("request", "module"):
        try:
            underscores(value)
        except UnmatchedBracket:
            raise SyntaxProblem(index, "expected a pattern with matching brackets") from None


def _check_together(conditions: dict[Key, Condition], index: int) -> None:
    """Raise SyntaxProblem if the last condition makes a rule that can never match."""
    if "origin" not in conditions:
        return
    origins = set(conditions["origin"].wanted or WORDS["origin"]) - set(conditions["origin"].unwanted)
    if not origins:
        raise SyntaxProblem(index, "expected an origin that is not excluded")
    if not origins & set(ASKED_BY_PROCESSES):
        for key in OF_PROCESSES:
            if key in conditions:
                raise SyntaxProblem(
                    index, f"{key}= needs origin={' or '.join(ASKED_BY_PROCESSES)}: other origins have no process"
                )


def _quoted(value: str) -> str:
    """Return `value` as written in a rule, in quotes if necessary."""
    return f'"{value}"' if not value or set(value) & set(_BLANK + ",") or value[0] in '!"#' else value


def _alternatives(words: tuple[str, ...]) -> str:
    """Return `a, b or c`."""
    return f"{', '.join(words[:-1])} or {words[-1]}"
