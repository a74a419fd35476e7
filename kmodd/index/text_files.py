"""Parse the text indexes of a module directory.

depmod writes `modules.dep`, `.alias`, `.symbols`, `.softdep`, `.weakdep` and `.devname`; the kernel's build writes
`.order`, `.builtin` and `.builtin.modinfo` (Documentation/kbuild/kbuild.rst). Parsers raise nothing: an invalid line is
a Problem at `file:line`, and the other lines are used. A truncated last line is usually invalid too. As in kmod, the
parser of modprobe.d reads `modules.softdep` and `modules.weakdep`.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass
from kmodd.errors import Problem, Where
from kmodd.names import ModuleName, module_name
from kmodd.text import decode

TYPE_CHECKING = False

ALIAS_HEAD = "# Aliases extracted from modules themselves.\n"
SOFTDEP_HEAD = "# Soft dependencies extracted from modules themselves.\n"
WEAKDEP_HEAD = "# Weak dependencies extracted from modules themselves.\n"
SYMBOLS_HEAD = "# Aliases for symbols, used by symbol_request().\n"
DEVNAME_HEAD = "# Device nodes to trigger on-demand module loading.\n"


@dataclass(frozen=True, slots=True)
class DepLine:
    """A line of modules.dep."""

    path: str
    """Path of the module file, relative to the module directory, or absolute if the file is outside of it."""
    deps: tuple[str, ...]
    """Paths of all modules that it needs, direct or not, users before used: the last one must be loaded first."""


@dataclass(frozen=True, slots=True)
class AliasLine:
    """A line of modules.alias or modules.symbols."""

    pattern: str
    """As in the file, with dashes."""
    module: ModuleName
    line: int


@dataclass(frozen=True, slots=True)
class Match:
    """An entry of an alias index that matches a name."""

    module: ModuleName
    pattern: str
    """As in the file."""
    at: Where
    """Line 0 for a source without lines: a `.bin`, modules.builtin.modinfo."""


@dataclass(frozen=True, slots=True)
class Devname:
    """A line of modules.devname: a device node that loads a module when it is opened."""

    module: ModuleName
    node: str
    """Path relative to /dev."""
    kind: str
    """`c` or `b`."""
    major: int
    minor: int


@dataclass(frozen=True, slots=True)
class ModinfoEntry:
    """A string of modules.builtin.modinfo: `module.key=value`."""

    module: ModuleName
    key: str
    value: str


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def dep_line(line: str) -> DepLine | None:
    """Parse a line of modules.dep or a value of modules.dep.bin (kmod_module_parse_depline). None if it has no `:`."""
    path, colon, deps = line.partition(":")
    return DepLine(path, tuple(deps.replace("\t", " ").split())) if colon else None


def dep_lines(data: bytes, file: str) -> tuple[dict[ModuleName, str], tuple[Problem, ...]]:
    """Split modules.dep. Return the line of each module, for `dep_line`, and problems.

    Of two lines for one module the first counts, which has the higher priority in the .bin. file: name in problems.
    """
    lines = decode(data).split("\n")
    good = [line for line in lines if ":" in line]
    # `module_of_path` inlined: this runs for 4,000 lines before the first module of a boot.
    names = [line.partition(":")[0].rpartition("/")[2].partition(".")[0].replace("-", "_") for line in good]
    first = zip(map(ModuleName, reversed(names)), reversed(good), strict=True)
    table = dict.fromkeys(map(ModuleName, names), "") | dict(first)
    problems: tuple[Problem, ...] = ()
    if len(good) < len(lines) - 1 or lines[-1]:
        bad = [(number, line) for number, line in enumerate(lines, 1) if line and ":" not in line]
        problems = tuple([_problem(file, number, line, "expected `FILE: FILE…`") for number, line in bad])
    return table, problems


def alias_lines(data: bytes, file: str) -> tuple[tuple[AliasLine, ...], tuple[Problem, ...]]:
    """Parse modules.alias or modules.symbols. Return all lines in order, and problems. file: name in problems."""
    lines = []
    problems = []
    for number, line in enumerate(decode(data).split("\n"), 1):
        if not line or line.startswith("#"):
            continue
        pattern, blank, module = line.removeprefix("alias ").rpartition(" ")
        if line.startswith("alias ") and blank and pattern and module:
            lines.append(AliasLine(pattern, module_name(module), number))
        else:
            problems.append(_problem(file, number, line, "expected `alias PATTERN MODULE`"))
    return tuple(lines), tuple(problems)


def module_paths(data: bytes, file: str) -> tuple[tuple[str, ...], tuple[Problem, ...]]:
    """Parse modules.builtin or modules.order. Return the paths in order, and problems. file: name in problems."""
    paths = []
    problems = []
    for number, line in enumerate(decode(data).split("\n"), 1):
        if ".ko" in line:
            paths.append(line)
        elif line:
            problems.append(_problem(file, number, line, "expected the path of a module, ending in .ko"))
    return tuple(paths), tuple(problems)


def builtin_modinfo(data: bytes, file: str, only: str = "") -> tuple[tuple[ModinfoEntry, ...], tuple[Problem, ...]]:
    """Parse modules.builtin.modinfo: NUL-terminated strings, grouped by module (libkmod-builtin.c).

    Return the entries in order, and problems. file: name in problems. only: a key such as `alias` to return alone.
    """
    entries = []
    problems = []
    for number, text in enumerate(decode(data).split("\0"), 1):
        if not text:
            continue
        name, equals, value = text.partition("=")
        module, dot, key = name.partition(".")
        if equals and dot and module and key:
            if only and key != only:
                continue
            entries.append(ModinfoEntry(module_name(module), key, value))
        else:
            problems.append(_problem(file, number, text, "expected `MODULE.KEY=VALUE` and a NUL byte"))
    return tuple(entries), tuple(problems)


def devnames(data: bytes, file: str) -> tuple[tuple[Devname, ...], tuple[Problem, ...]]:
    """Parse modules.devname. Return all nodes in order, and problems. file: name in problems."""
    found = []
    problems = []
    for number, line in enumerate(decode(data).split("\n"), 1):
        if not line or line.startswith("#"):
            continue
        words = line.split()
        device = words[2] if len(words) == 3 else ""
        major, colon, minor = device[1:].partition(":")
        if device[:1] in ("c", "b") and colon and _is_number(major) and _is_number(minor):
            found.append(Devname(module_name(words[0]), words[1], device[0], int(major), int(minor)))
        else:
            problems.append(_problem(file, number, line, "expected `MODULE NODE cMAJOR:MINOR`, or b"))
    return tuple(found), tuple(problems)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _problem(file: str, line: int, source: str, expected: str) -> Problem:
    return Problem(Where(file, line), 0, source[:200], expected)


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────
