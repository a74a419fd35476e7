"""/etc/conf.modules and /etc/modules.conf of kerneld's and modutils' users: a text in, modprobe.d's words out.

Source of the rules: modules.conf(5) and config.c of modutils 2.4. There "all text on a line after a '#'" is ignored,
lines "may be continued by ending the line with a '\\'", a later line for the same name replaces the earlier ones unless
it begins with `add`, and a shell expands the arguments. In modprobe.d all lines count, of a module's install and
softdep lines the first, and nothing is expanded; so the file is read as a whole before anything is said.
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
"""The command that stands for `alias X off`: the request is answered, and nothing is loaded."""

_NO_EQUIVALENT = {
    "path": "kmod looks below /lib/modules/RELEASE alone: link the directory there, name it in depmod.d(5) `search`",
    "keep": "there are no default paths to keep; the tree in /lib/modules/RELEASE always counts",
    "prune": "see `exclude` in depmod.d(5)",
    "define": "nothing is expanded in modprobe.d; write the value where the variable stands",
    "include": "nothing is included in modprobe.d; convert that file by itself",
    "insmod_opt": "there are no options for insmod; module parameters belong in `options`",
    "persistdir": "modules have kept no persistent data since kernel 2.6",
}
_MAP_FILE = re.compile(r"dep|generic_string|(?:pci|isapnp|usb|parport|ieee1394|pnpbios)map")
_HOOKS = ("pre-install", "install", "post-install", "pre-remove", "remove", "post-remove")
_LISTS = ("above", "below", "probe", "probeall")
_STATEMENT = re.compile(r"(?:(add)\s+)?([^\s=]+)\s*(=?)\s*(.*)")
_EXPANDED = re.compile(r"[`$]")
_INSMOD_BY_NAME = re.compile(r"\binsmod\s+(?:-\S+\s+)*[^-/.\s]")


@dataclass(frozen=True, slots=True)
class Conversion:
    """What `convert` found: the text for a file in modprobe.d, and the lines that have no equivalent there, and why."""

    text: str
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class _Statement:
    at: Where
    source: str
    adding: bool
    word: str
    assigned: bool
    rest: str

    def problem(self, why: str) -> Problem:
        return Problem(self.at, len(self.source) - len(self.source.lstrip()) + 1, self.source, why)


@dataclass(slots=True)
class _Named:
    """All that was said of one name; later lines have replaced earlier ones already."""

    spelled: str
    """As in the first line that has it; it is looked up with `_` for `-`."""
    alias: str = ""
    options: list[str] = field(default_factory=list)
    lists: dict[str, list[str]] = field(default_factory=dict)
    hooks: dict[str, list[str]] = field(default_factory=dict)
    said_by: dict[str, list[_Statement]] = field(default_factory=dict)
    """The lines that hold for each directive."""


def convert(file: ConfFile) -> Conversion:
    """The modprobe.d equivalent of an old configuration. Never raises: a line without one is a Problem that says why.

    `alias X off` and `alias X null` become `install X /bin/true`; above and below become a softdep; pre-install and
    post-install are put around `/sbin/modprobe --ignore-install`. What was written for the shell stays shell.
    """
    problems: list[Problem] = []
    names: dict[str, _Named] = {}
    for statement in _unconditional(_statements(file), problems):
        if why := _enter(names, statement, problems):
            problems.append(statement.problem(why))
    lines = [line for named in names.values() for line in _lines(named, names, problems)]
    problems.sort(key=lambda problem: problem.at.line)
    # A backslash in modprobe.d takes the special meaning from whatever follows it, so it is written twice.
    return Conversion("".join(line.replace("\\", "\\\\") + "\n" for line in lines), tuple(problems))


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _statements(file: ConfFile) -> Iterator[_Statement]:
    """What the lines say. A comment is cut off before a backslash is looked for, so a comment continues nothing."""
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
    """The lines outside if … endif; those inside are named: which of them counts was decided anew at each run."""
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
                problems.append(statement.problem(f"it stands under the condition of line {opened[-1].at.line}"))
            case _:
                yield statement
    problems.extend(statement.problem("`if` without `endif`") for statement in opened)


def _enter(names: dict[str, _Named], statement: _Statement, problems: list[Problem]) -> str:
    """Put what a line says under its name. Returns why it has no equivalent, empty where it has one."""
    word, rest = statement.word, statement.rest
    kind = word.partition("[")[0] if statement.assigned else word
    if reason := _NO_EQUIVALENT.get(kind):
        return reason
    if statement.assigned and _MAP_FILE.fullmatch(kind.removesuffix("file")):
        return "depmod writes its files where kmod looks for them"
    if statement.assigned or word not in ("alias", "options", *_LISTS, *_HOOKS):
        return f"modules.conf has no directive `{word}`"
    if word == "options" and rest.startswith("-k"):
        rest = rest.removeprefix("-k").lstrip()
    name, _, value = (rest + " ").replace("\t", " ").partition(" ")
    value = value.strip()
    if why := _unfit(name, value, word):
        return why
    named = names.setdefault(underscores(name), _Named(name))
    if word == "alias":
        _replace(named, statement, problems)
        named.alias = _module(value.split()[0])
    elif word == "options":
        if not statement.adding:
            _replace(named, statement, problems)
            named.options.clear()
        return _enter_options(named, statement, value, problems)
    elif word in _LISTS:
        if not statement.adding:
            _replace(named, statement, problems)
            named.lists[word] = []
        named.lists.setdefault(word, []).extend(_module(each) for each in value.split())
    else:
        named.hooks.setdefault(word, []).append(value)
        if _INSMOD_BY_NAME.search(value):
            problems.append(statement.problem("converted, but insmod needs the path of a file now; use modprobe"))
    named.said_by.setdefault(word, []).append(statement)
    return ""


def _unfit(name: str, value: str, word: str) -> str:
    """Why a name and what follows it cannot be carried over; empty where they can."""
    if not name:
        return f"`{word}` without a name"
    if not value:
        return f"`{word} {name}` says nothing"
    if word in _HOOKS:
        return _unfit_name(name)
    if _EXPANDED.search(name + value):
        return "modutils had a shell expand ` and $; modprobe.d does not; write the result"
    words = [name] if word == "options" else [name, *value.split()]
    return next((why for why in map(_unfit_name, words) if why), "")


def _unfit_name(name: str) -> str:
    try:
        underscores(name)
    except UnmatchedBracket:
        return f"the name {name} has a bracket without its partner"
    return f"{name} is a path; only the names of modules can stand here" if "/" in name else ""


def _enter_options(named: _Named, statement: _Statement, value: str, problems: list[Problem]) -> str:
    """Module parameters; what is meant for insmod (`-o name`, `-f`) goes."""
    words = value.split(" ")
    while words and (words[0].startswith("-") or not words[0]):
        flag = words.pop(0)
        if flag == "-o":
            name = words.pop(0) if words else ""
            problems.append(statement.problem(f"a module cannot be loaded twice under names of its own (-o {name})"))
        elif flag:
            problems.append(statement.problem(f"there are no options for insmod ({flag})"))
    if words:
        named.options.append(" ".join(words))
        named.said_by.setdefault("options", []).append(statement)
    return ""


def _replace(named: _Named, by: _Statement, problems: list[Problem]) -> None:
    """A later line without `add` replaces the earlier ones; in modprobe.d they would all count."""
    replaced = named.said_by.pop(by.word, ())
    problems.extend(statement.problem(f"replaced by line {by.at.line}") for statement in replaced)


def _module(name: str) -> str:
    """The name of a module without the ending that object files had then."""
    return re.sub(r"\.k?o(?:\.gz)?$", "", name)


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _lines(named: _Named, names: dict[str, _Named], problems: list[Problem]) -> Iterator[str]:
    """The modprobe.d lines for one name."""
    name, lines_of = named.spelled, named.said_by
    target = _target(named.alias, names)
    if target in ("off", "null"):
        yield f"install {name} {NO_MODULE}"
        for word in ("options", *_LISTS, *_HOOKS):
            problems.extend(line.problem(f"never used: {name} is {target}") for line in lines_of.get(word, ()))
        return
    if target:
        yield f"alias {name} {target}"
    if target is None:
        problems.extend(line.problem("an alias of itself, in a circle") for line in lines_of["alias"])
    elif target != named.alias:
        why = f"converted to {target}: an alias of an alias does not work any more, nor do options for {named.alias}"
        problems.extend(line.problem(why) for line in lines_of["alias"])
    for options in named.options:
        yield f"options {name} {options}"
    yield from _commands(name, named, problems)


def _target(alias: str, names: dict[str, _Named]) -> str | None:
    """Where an alias leads in the end: modutils resolved an alias of an alias, kmod does not. None for a circle."""
    seen = set()
    while (further := names.get(underscores(alias))) and further.alias and further.alias != alias:
        if alias in seen:
            return None
        seen.add(alias)
        alias = further.alias
    return alias


def _commands(name: str, named: _Named, problems: list[Problem]) -> Iterator[str]:
    """install, remove and softdep of one name. One line each: of several, kmod takes the first."""
    below, above = named.lists.get("below", []), named.lists.get("above", [])
    hooks = named.hooks
    either, each = named.lists.get("probe", []), named.lists.get("probeall", [])
    install = _grouped(hooks.get("install", []))
    if either or each:
        if install:
            word = "probe" if either else "probeall"
            problems.extend(line.problem(f"{name} has `install` too") for line in named.said_by.get(word, ()))
        install = install or [_probe(either) if either else _probe_all(each)]
    before, after = _grouped(hooks.get("pre-install", [])), _grouped(hooks.get("post-install", []))
    if install or before or after:
        # A softdep would disable the install line (kmod issue 446), so what is above and below goes into it.
        body = install or [f"/sbin/modprobe --ignore-install {name} $CMDLINE_OPTS"]
        first = f"/sbin/modprobe -qa {' '.join(below)}; " if below else ""
        last = f" && {{ /sbin/modprobe -qa {' '.join(above)} || :; }}" if above else ""
        alone = len(before + body + after) == 1 and not above
        yield f"install {name} {first}{_bare(body[0]) if alone else ' && '.join(before + body + after)}{last}"
    elif below or above:
        pre = f" pre: {' '.join(below)}" if below else ""
        post = f" post: {' '.join(above)}" if above else ""
        yield f"softdep {name}{pre}{post}"
    yield from _removal(name, hooks, either or each)


def _removal(name: str, hooks: dict[str, list[str]], probed: list[str]) -> Iterator[str]:
    remove = _grouped(hooks.get("remove", []))
    if probed and not remove:
        remove = [f"/sbin/modprobe -ra {' '.join(reversed(probed))}"]
    before, after = _grouped(hooks.get("pre-remove", [])), _grouped(hooks.get("post-remove", []))
    if before or remove or after:
        commands = [*before, *(remove or [f"/sbin/modprobe -r --ignore-remove {name}"]), *after]
        yield f"remove {name} {_bare(commands[0]) if len(commands) == 1 else ' && '.join(commands)}"


def _grouped(commands: list[str]) -> list[str]:
    """Commands that can stand between `&&`, each as a group of the shell."""
    return [f"{{ {command}{'' if command.endswith((';', '&')) else ';'} }}" for command in commands]


def _bare(command: str) -> str:
    """A group that stands alone needs no braces."""
    return command[2:-2].removesuffix(";") if command.startswith("{ ") else command


def _probe(modules: list[str]) -> str:
    """`probe`: "tries to install each module in the list until it succeeds"."""
    return "{ " + " || ".join(f"/sbin/modprobe {module}" for module in modules) + "; }"


def _probe_all(modules: list[str]) -> str:
    """`probeall`: "If any module is installed, the command has succeeded"."""
    return "{ n=1; " + "; ".join(f"/sbin/modprobe {module} && n=0" for module in modules) + "; [ $n = 0 ]; }"
