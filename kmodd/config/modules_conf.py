"""Convert /etc/conf.modules or /etc/modules.conf, the configuration of kerneld and modutils, to modprobe.d(5).

The rules are those of modules.conf(5) and config.c of modutils 2.4: "all text on a line after a '#'" is ignored, lines
"may be continued by ending the line with a '\\'", a later line for the same name replaces the earlier ones unless it
begins with `add`, and a shell expands the arguments. In modprobe.d all lines count (of install and softdep lines of a
module, the first), and nothing is expanded. So the whole file is read before the first line is written.
"""

from __future__ import annotations

import re

from kmodd.config.modprobe_d import ConfFile
from kmodd.dataclass import dataclass, field
from kmodd.errors import Problem, UnmatchedBracket, Where
from kmodd.names import underscores

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

NO_MODULE = "/bin/true"
"""Command for `alias X off`: the request succeeds without loading a module."""

_NO_EQUIVALENT = {
    "path": "kmod searches only /lib/modules/RELEASE: link the directory there, name it in depmod.d(5) `search`",
    "keep": "there are no default paths to keep; the tree in /lib/modules/RELEASE is always used",
    "prune": "see `exclude` in depmod.d(5)",
    "define": "modprobe.d expands no variables; write the value in place of the variable",
    "include": "modprobe.d includes no files; convert that file separately",
    "insmod_opt": "there are no options for insmod; module parameters belong in `options`",
    "persistdir": "modules have stored no persistent data since kernel 2.6",
}
_MAP_FILE = re.compile(r"dep|generic_string|(?:pci|isapnp|usb|parport|ieee1394|pnpbios)map")
_HOOKS = ("pre-install", "install", "post-install", "pre-remove", "remove", "post-remove")
_LISTS = ("above", "below", "probe", "probeall")
_STATEMENT = re.compile(r"(?:(add)\s+)?([^\s=]+)\s*(=?)\s*(.*)")
_EXPANDED = re.compile(r"[`$]")
_AUTOCLEAN = re.compile(r"""(\bmodprobe(?:\s+-\S+)*)\s+(["']?)(?:-k|--autoclean)\2(?=\s)""")
"""The option of modutils that marks a module for autoclean; kmod's modprobe ends with an error for it."""
_OLD_OPTION = re.compile(r"""\bmodprobe(?:\s+["']?-\S+)*?\s+["']?-[a-zA-Z]*([tlok])""")
"""Other options of modutils' modprobe that kmod's does not have."""
_INSMOD_BY_NAME = re.compile(r"\binsmod\s+(?:-\S+\s+)*[^-/.\s]")


@dataclass(frozen=True, slots=True)
class Conversion:
    """Result of `convert`: the text of a file for modprobe.d, and the lines without an equivalent, with the reason."""

    text: str
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class _Statement:
    """A logical line: `[add] WORD [=] REST`."""

    at: Where
    source: str
    adding: bool
    """Begins with `add`."""
    word: str
    assigned: bool
    """Has a `=` after `word`."""
    rest: str

    def problem(self, why: str) -> Problem:
        return Problem(self.at, len(self.source) - len(self.source.lstrip()) + 1, self.source, why)


@dataclass(slots=True)
class _Entry:
    """The directives for one name; those replaced by later lines are removed."""

    name: str
    """As in its first line."""
    alias: str = ""
    options: list[str] = field(default_factory=list)
    lists: dict[str, list[str]] = field(default_factory=dict)
    hooks: dict[str, list[str]] = field(default_factory=dict)
    statements: dict[str, list[_Statement]] = field(default_factory=dict)
    """Directive → its lines that are in effect."""

    @property
    def has_commands(self) -> bool:
        """Whether a request for the name does more than to load modules."""
        return bool(self.hooks or any(self.lists.values()))


def convert(file: ConfFile) -> Conversion:
    """Convert an old configuration to modprobe.d. Raises nothing; a line without an equivalent is a Problem.

    `alias X off` and `alias X null` become `install X /bin/true`; above and below become a softdep; pre-install and
    post-install enclose `/sbin/modprobe --ignore-install`. Shell commands are copied. An alias with commands of its own
    becomes an install line, as kmod looks up an alias first, and then runs the commands of the module only.
    """
    problems: list[Problem] = []
    entries: dict[str, _Entry] = {}
    for statement in _unconditional(_statements(file), problems):
        if reason := _add(entries, statement, problems):
            problems.append(statement.problem(reason))
    lines = [line for entry in entries.values() for line in _lines(entry, entries, problems)]
    problems.sort(key=lambda problem: problem.at.line)
    # In modprobe.d a backslash escapes the next character, so it is doubled.
    return Conversion("".join(line.replace("\\", "\\\\") + "\n" for line in lines), tuple(problems))


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _statements(file: ConfFile) -> Iterator[_Statement]:
    """Yield the logical lines. Comments are removed before continuation is checked: a `\\` in one joins nothing."""
    joined, number, source = "", 0, ""
    lines = file.text.replace("\0", " ").split("\n")
    for current, line in enumerate(lines, start=1):
        if not joined:
            number, source = current, line
        joined += line.partition("#")[0].rstrip("\r")
        if joined.endswith("\\"):
            joined = joined[:-1] + " "
            if current < len(lines):
                continue
        if match := _STATEMENT.fullmatch(joined.strip()):
            add, word, assigned, rest = match.groups()
            yield _Statement(Where(file.path, number), source, bool(add), word, bool(assigned), rest)
        joined = ""


def _unconditional(statements: Iterable[_Statement], problems: list[Problem]) -> Iterator[_Statement]:
    """Yield the lines outside of if … endif. Those inside are problems: modutils evaluated conditions at run time."""
    opened: list[_Statement] = []
    for statement in statements:
        match statement.word:
            case "if":
                opened.append(statement)
                problems.append(statement.problem("there are no conditions in modprobe.d"))
            case "endif" if opened:
                opened.pop()
            case "else" | "elseif" if opened:
                pass
            case "else" | "elseif" | "endif":
                problems.append(statement.problem(f"`{statement.word}` without `if`"))
            case _ if opened:
                problems.append(statement.problem(f"depends on the condition in line {opened[-1].at.line}"))
            case _:
                yield statement
    problems.extend(statement.problem("`if` without `endif`") for statement in opened)


def _add(entries: dict[str, _Entry], statement: _Statement, problems: list[Problem]) -> str:
    """Add a line to the entry of its name. Return why the line has no equivalent, or an empty text if it has one."""
    word, rest = statement.word, statement.rest
    kind = word.partition("[")[0] if statement.assigned else word
    if reason := _NO_EQUIVALENT.get(kind):
        return reason
    if statement.assigned and _MAP_FILE.fullmatch(kind.removesuffix("file")):
        return "depmod writes its files where kmod reads them"
    if statement.assigned or word not in ("alias", "options", *_LISTS, *_HOOKS):
        return f"modules.conf has no directive `{word}`"
    if word == "options" and rest.startswith("-k"):
        rest = rest.removeprefix("-k").lstrip()
    name, _, value = (rest + " ").replace("\t", " ").partition(" ")
    value = value.strip()
    if reason := _not_convertible(name, value, word):
        return reason
    entry = entries.setdefault(underscores(name), _Entry(name))
    if word == "alias":
        _replace(entry, statement, problems)
        entry.alias = _module(value.split()[0])
    elif word == "options":
        if not statement.adding:
            _replace(entry, statement, problems)
            entry.options.clear()
        return _add_options(entry, statement, value, problems)
    elif word in _LISTS:
        if not statement.adding:
            _replace(entry, statement, problems)
            entry.lists[word] = []
        entry.lists.setdefault(word, []).extend(_module(each) for each in value.split())
    else:
        while value != (without := _AUTOCLEAN.sub(r"\1", value)):
            value = without
        entry.hooks.setdefault(word, []).append(value)
        if match := _OLD_OPTION.search(value):
            problems.append(statement.problem(f"converted, but modprobe has no option -{match[1]} any more"))
        if _INSMOD_BY_NAME.search(value):
            problems.append(statement.problem("converted, but insmod now requires the path of a file; use modprobe"))
    entry.statements.setdefault(word, []).append(statement)
    return ""


def _not_convertible(name: str, value: str, word: str) -> str:
    """Return why a name and its value cannot be converted, or an empty text if they can."""
    if not name:
        return f"`{word}` without a name"
    if not value:
        return f"`{word} {name}` without a value"
    if word in _HOOKS:
        return _invalid_name(name)
    if _EXPANDED.search(name + value):
        return "modutils let a shell expand ` and $, modprobe.d does not; write the result"
    words = [name] if word == "options" else [name, *value.split()]
    return next((reason for reason in map(_invalid_name, words) if reason), "")


def _invalid_name(name: str) -> str:
    """Return why `name` is no module name, or an empty text if it is one."""
    try:
        underscores(name)
    except UnmatchedBracket:
        return f"unmatched bracket in the name {name}"
    return f"{name} is a path; expected a module name" if "/" in name else ""


def _add_options(entry: _Entry, statement: _Statement, value: str, problems: list[Problem]) -> str:
    """Add the module parameters of an `options` line; options of insmod (`-o name`, `-f`) become problems."""
    words = value.split(" ")
    while words and (words[0].startswith("-") or not words[0]):
        flag = words.pop(0)
        if flag == "-o":
            name = words.pop(0) if words else ""
            problems.append(statement.problem(f"a module cannot be loaded again under another name (-o {name})"))
        elif flag:
            problems.append(statement.problem(f"there are no options for insmod ({flag})"))
    if words:
        entry.options.append(" ".join(words))
        entry.statements.setdefault("options", []).append(statement)
    return ""


def _replace(entry: _Entry, by: _Statement, problems: list[Problem]) -> None:
    """Drop earlier lines of the directive: a line without `add` replaces them, in modprobe.d all would count."""
    replaced = entry.statements.pop(by.word, ())
    problems.extend(statement.problem(f"replaced by line {by.at.line}") for statement in replaced)


def _module(name: str) -> str:
    """Return a module name without the suffix of object files (`.o`, `.ko`, with `.gz`)."""
    return re.sub(r"\.k?o(?:\.gz)?$", "", name)


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _lines(entry: _Entry, entries: dict[str, _Entry], problems: list[Problem]) -> Iterator[str]:
    """Yield the modprobe.d lines for one name."""
    name, lines_of = entry.name, entry.statements
    target = _target(entry.alias, entries)
    if target in ("off", "null"):
        yield f"install {name} {NO_MODULE}"
        for word in ("options", *_LISTS, *_HOOKS):
            problems.extend(line.problem(f"never used: {name} is {target}") for line in lines_of.get(word, ()))
        return
    if target and not entry.has_commands:
        yield f"alias {name} {target}"
    if target is None:
        problems.extend(line.problem("circular alias") for line in lines_of["alias"])
    elif target != entry.alias:
        reason = (
            f"converted to {target}: kmod does not follow an alias of an alias, nor apply options for {entry.alias}"
        )
        problems.extend(line.problem(reason) for line in lines_of["alias"])
    for options in entry.options:
        yield f"options {name} {options}"
    yield from _commands(name, entry, target or "", problems)


def _target(alias: str, entries: dict[str, _Entry]) -> str | None:
    """Return the final target of an alias, or None for a circle; modutils resolved chains of aliases, kmod does not.

    A name with commands is a target, too: it becomes an install line.
    """
    seen = set()
    while (further := entries.get(underscores(alias))) and further.alias and further.alias != alias:
        if further.has_commands and further.alias not in ("off", "null"):
            return alias
        if alias in seen:
            return None
        seen.add(alias)
        alias = further.alias
    return alias


def _commands(name: str, entry: _Entry, target: str, problems: list[Problem]) -> Iterator[str]:
    """Yield at most one install, remove and softdep line for a name: kmod uses the first of several.

    target: the module that the name is an alias of; empty: it is a module itself.
    """
    below, above = entry.lists.get("below", []), entry.lists.get("above", [])
    hooks = entry.hooks
    either, each = entry.lists.get("probe", []), entry.lists.get("probeall", [])
    install = _grouped(hooks.get("install", []))
    if either or each:
        if install:
            word = "probe" if either else "probeall"
            problems.extend(line.problem(f"{name} has `install` too") for line in entry.statements.get(word, ()))
        install = install or [_probe(either) if either else _probe_all(each)]
    before, after = _grouped(hooks.get("pre-install", [])), _grouped(hooks.get("post-install", []))
    if install and target:
        why = "not used: the name has commands of its own"
        problems.extend(line.problem(why) for line in entry.statements["alias"])
    if install or before or after or (target and entry.has_commands):
        # A softdep would disable the install line (kmod issue 446), so the line loads what is above and below.
        load = f"/sbin/modprobe {target}" if target else f"/sbin/modprobe --ignore-install {name}"
        body = install or [f"{load} $CMDLINE_OPTS"]
        first = f"/sbin/modprobe -qa {' '.join(below)}; " if below else ""
        last = f" && {{ /sbin/modprobe -qa {' '.join(above)} || :; }}" if above else ""
        alone = len(before + body + after) == 1 and not above
        yield f"install {name} {first}{_ungrouped(body[0]) if alone else ' && '.join(before + body + after)}{last}"
    elif below or above:
        pre = f" pre: {' '.join(below)}" if below else ""
        post = f" post: {' '.join(above)}" if above else ""
        yield f"softdep {name}{pre}{post}"
    yield from _removal(name, hooks, either or each, target if entry.has_commands else "")


def _removal(name: str, hooks: dict[str, list[str]], probed: list[str], target: str) -> Iterator[str]:
    """Yield the remove line of a name, if any.

    probed: modules of its `probe` or `probeall`. target: the module that its install line loads; empty: itself.
    """
    remove = _grouped(hooks.get("remove", []))
    if probed and not remove:
        remove = [f"/sbin/modprobe -ra {' '.join(reversed(probed))}"]
    before, after = _grouped(hooks.get("pre-remove", [])), _grouped(hooks.get("post-remove", []))
    if before or remove or after or target:
        unload = f"/sbin/modprobe -r {target}" if target else f"/sbin/modprobe -r --ignore-remove {name}"
        commands = [*before, *(remove or [unload]), *after]
        yield f"remove {name} {_ungrouped(commands[0]) if len(commands) == 1 else ' && '.join(commands)}"


def _grouped(commands: list[str]) -> list[str]:
    """Return each command as a group of the shell, to be joined by `&&`."""
    return [f"{{ {command}{'' if command.endswith((';', '&')) else ';'} }}" for command in commands]


def _ungrouped(command: str) -> str:
    """Return a command without the braces of `_grouped`."""
    return command[2:-2].removesuffix(";") if command.startswith("{ ") else command


def _probe(modules: list[str]) -> str:
    """Return the command for `probe`: "tries to install each module in the list until it succeeds"."""
    return "{ " + " || ".join(f"/sbin/modprobe {module}" for module in modules) + "; }"


def _probe_all(modules: list[str]) -> str:
    """Return the command for `probeall`: "If any module is installed, the command has succeeded"."""
    return "{ n=1; " + "; ".join(f"/sbin/modprobe {module} && n=0" for module in modules) + "; [ $n = 0 ]; }"
