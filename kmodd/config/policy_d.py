"""policy.d: texts in, `Parsed` out: rules in their order, and a `Problem` for every line that could not be used.

    # what may be loaded, and for whom; the first rule that fits decides
    allow  module=usb_storage
    deny   origin=request request=net-pf-*,algif-* uid=!0     # not for users
    log    origin=operator
    deny   *

A line is a rule: `allow`, `deny` or `log`, then conditions, KEY=VALUE, which must all hold; `*` in their place holds
for everything. Several values of a condition stand with a comma between them: one of them has to fit, and none of those
with a `!` before them. A value with a blank or a comma in it stands in double quotes. `#` at the beginning of a word
begins a comment.

Which of several files are read, and in what order: as with modprobe.d (`modprobe_d.ordered`).
"""

from __future__ import annotations

import re

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
    ]  # fmt: skip
else:
    Verdict = Mode = Phase = Key = str

VERDICTS: Final[tuple[Verdict, ...]] = ("allow", "deny", "log")
"""log: allowed, and the record says that this rule saw it."""
MODES: Final[tuple[Mode, ...]] = ("off", "observe", "enforce")
"""off: nothing is judged. observe: what would have been refused is recorded as such, and loaded. enforce: refused."""
PHASES: Final[tuple[Phase, ...]] = ("boot", "running", "sealed")
"""boot: until the first coldplug is answered. sealed: after `kmodd seal`; then what no rule allows is refused."""
KEYS: Final[tuple[Key, ...]] = (
    "origin", "request", "module", "subsystem", "device", "uid", "unit", "container", "exe", "phase", "flag",
)  # fmt: skip
WORDS: Final[dict[str, tuple[str, ...]]] = {
    "origin": ("uevent", "coldplug", "request", "boot", "operator", "reconcile"),
    "phase": PHASES,
    "container": ("yes", "no"),
}
"""Key → all that may stand there. The origins are those of `kmodd.planning.request`."""
OF_PROCESSES: Final = ("uid", "unit", "container", "exe")
"""Keys that ask about the process that wants it; where none does (a device, the boot list) they never hold."""
ASKED_BY_PROCESSES: Final = ("request", "operator")
"""The origins behind which there is a process."""
OF_DEVICES: Final = ("subsystem", "device")
"""Keys that ask about the device that wants it; where none does they never hold."""
NONE: Final = "-"
"""unit: of no unit, as the kernel's own threads are."""
MAX_UID: Final = 2**32 - 2
"""(uid_t) -1 means "none" (chown(2))."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One `KEY=VALUE,…`: one of `wanted` has to fit, if there are any, and none of `unwanted` may."""

    key: Key
    wanted: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()

    def __str__(self) -> str:
        values = [*map(_quoted, self.wanted), *("!" + _quoted(value) for value in self.unwanted)]
        return f"{self.key}={','.join(values)}"


@dataclass(frozen=True, slots=True)
class Rule:
    """One line."""

    at: Where
    text: str
    """As written, without the comment and the blanks around it; messages show it."""
    verdict: Verdict
    conditions: tuple[Condition, ...]
    """All must hold; none: it fits everything."""

    def __str__(self) -> str:
        """The rule anew, as a line that means the same."""
        return " ".join([self.verdict, *map(str, self.conditions)] if self.conditions else [self.verdict, "*"])


@dataclass(frozen=True, slots=True)
class Parsed:
    """What the files say."""

    rules: tuple[Rule, ...] = ()
    problems: tuple[Problem, ...] = ()


def parse(files: Iterable[ConfFile]) -> Parsed:
    """Read all files, in the order of `modprobe_d.ordered`. Never raises: a bad line is a Problem, and no rule."""
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


def uid_range(text: str) -> tuple[int, int] | None:
    """`5`, `5-9` or `5-` as the first and the last of them; None for anything else."""
    match = re.fullmatch(r"([0-9]{1,10})(?:(-)([0-9]{1,10})?)?", text, re.ASCII)
    if match is None:
        return None
    low = int(match[1])
    high = int(match[3]) if match[3] else MAX_UID if match[2] else low
    return (low, high) if low <= high <= MAX_UID else None


# ── lines ────────────────────────────────────────────────────────────────────────────────────────────────────────────

_BLANK = " \t\r\v\f"
_WORD = r'(?:"[^"]*"|[^" \t\r\v\f])+'
"""Text up to a blank; within quotes blanks count as text."""
_VALUE = r'(!?)(?:"([^"]*)"|([^",]*))'


def _rules_of(line: str, at: Where) -> Iterator[Rule]:
    """The rule of a line, if it has one. Raises SyntaxProblem."""
    words = list(_words(line))
    if not words:
        return
    start, first = words[0]
    verdict = next((verdict for verdict in VERDICTS if verdict == first), None)
    if verdict is None:
        raise SyntaxProblem(start, f"expected {_either(VERDICTS)}")
    end = words[-1][0] + len(words[-1][1])
    if len(words) == 1:
        raise SyntaxProblem(end, "expected a condition such as origin=request, or * for everything")
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
    """The words up to the comment, each with its place. Raises SyntaxProblem for a quote that is not closed."""
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
            raise SyntaxProblem(end, 'expected a second " behind this one')
        yield index, line[index:end]
        index = end


def _condition(word: str, index: int) -> Condition:
    """`KEY=VALUE,…`, which stands at `index` of its line. Raises SyntaxProblem."""
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
    """Each value, where it begins, and whether a `!` stands before it."""
    at = 0
    while True:
        match = re.compile(_VALUE).match(text, at)
        assert match is not None  # it matches the empty string
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
    """Raises SyntaxProblem for a value that its key does not know."""
    if key in WORDS:
        if value not in WORDS[key]:
            raise SyntaxProblem(index, f"expected {_either(WORDS[key])}")
    elif key == "uid":
        if uid_range(value) is None:
            raise SyntaxProblem(index, f"expected a user's number up to {MAX_UID}, or a range of them: 0, 1000-, 1-999")
    elif key == "flag":
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", value):
            raise SyntaxProblem(index, "expected the name of a file in /run/kmodd/flags: letters, digits, - and _")
    elif key in ("request", "module"):
        try:
            underscores(value)
        except UnmatchedBracket:
            raise SyntaxProblem(index, "expected a pattern in which each [ has its ]") from None


def _check_together(conditions: dict[Key, Condition], index: int) -> None:
    """Raises SyntaxProblem where the condition that came last makes a rule that can never hold."""
    if "origin" not in conditions:
        return
    origins = set(conditions["origin"].wanted or WORDS["origin"]) - set(conditions["origin"].unwanted)
    if not origins:
        raise SyntaxProblem(index, "expected an origin that is left over")
    if not origins & set(ASKED_BY_PROCESSES):
        for key in OF_PROCESSES:
            if key in conditions:
                raise SyntaxProblem(
                    index, f"{key}= needs origin={' or '.join(ASKED_BY_PROCESSES)}: others have no process"
                )


def _quoted(value: str) -> str:
    return f'"{value}"' if not value or set(value) & set(_BLANK + ",") or value[0] in '!"#' else value


def _either(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
