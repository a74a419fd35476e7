"""The text indexes of a module directory: bytes in, tables out; and the texts again, as depmod writes them.

`modules.dep`, `.alias`, `.symbols`, `.softdep`, `.weakdep`, `.devname` are depmod's; `.order`, `.builtin` and
`.builtin.modinfo` come from the kernel's build (Documentation/kbuild/kbuild.rst). A line that cannot be used is a
Problem at `file:line`; the other lines count, and a file cut off in the middle of a line is such a line.
`modules.softdep` and `modules.weakdep` are read by the parser of modprobe.d, as kmod does; only their writing is here.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass
from kmodd.errors import Problem, Where
from kmodd.names import ModuleName, module_name
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ALIAS_HEAD = "# Aliases extracted from modules themselves.\n"
SOFTDEP_HEAD = "# Soft dependencies extracted from modules themselves.\n"
WEAKDEP_HEAD = "# Weak dependencies extracted from modules themselves.\n"
SYMBOLS_HEAD = "# Aliases for symbols, used by symbol_request().\n"
DEVNAME_HEAD = "# Device nodes to trigger on-demand module loading.\n"


@dataclass(frozen=True, slots=True)
class DepLine:
    """One line of modules.dep."""

    path: str
    """Of the module's file: relative to the module directory, or absolute for a module outside of it."""
    deps: tuple[str, ...]
    """Files it needs, of the same form, all of them, users before used: the last is to be loaded first."""


@dataclass(frozen=True, slots=True)
class AliasLine:
    """One line of modules.alias or modules.symbols."""

    pattern: str
    """As the file spells it, dashes and all."""
    module: ModuleName
    line: int


@dataclass(frozen=True, slots=True)
class Devname:
    """One line of modules.devname: a device node whose opening loads a module."""

    module: ModuleName
    node: str
    """Below /dev."""
    kind: str
    """`c` or `b`."""
    major: int
    minor: int


@dataclass(frozen=True, slots=True)
class ModinfoEntry:
    """One string of modules.builtin.modinfo: `module.key=value`."""

    module: ModuleName
    key: str
    value: str


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def dep_line(line: str) -> DepLine | None:
    """One line of modules.dep, or value of modules.dep.bin; None where it has no `:` (kmod_module_parse_depline)."""
    path, colon, deps = line.partition(":")
    return DepLine(path, tuple(deps.replace("\t", " ").split())) if colon else None


def dep_lines(data: bytes, file: str) -> tuple[dict[ModuleName, str], tuple[Problem, ...]]:
    """modules.dep: the whole line of each module, to be taken apart by `dep_line` when it is asked for.

    Of two lines for one module the first counts, as its priority is better in the .bin.
    """
    lines = decode(data).split("\n")
    good = [line for line in lines if ":" in line]
    # `module_of_path`, written out: here it is asked 4,000 times before the first module of a boot.
    names = [line.partition(":")[0].rpartition("/")[2].partition(".")[0].replace("-", "_") for line in good]
    first = zip(map(ModuleName, reversed(names)), reversed(good), strict=True)
    table = dict.fromkeys(map(ModuleName, names), "") | dict(first)
    problems: tuple[Problem, ...] = ()
    if len(good) < len(lines) - 1 or lines[-1]:
        bad = [(number, line) for number, line in enumerate(lines, 1) if line and ":" not in line]
        problems = tuple([_problem(file, number, line, "expected `FILE: FILE…`") for number, line in bad])
    return table, problems


def alias_lines(data: bytes, file: str) -> tuple[tuple[AliasLine, ...], tuple[Problem, ...]]:
    """modules.alias and modules.symbols: every line, in its order."""
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
    """modules.builtin and modules.order: the paths, in their order."""
    paths = []
    problems = []
    for number, line in enumerate(decode(data).split("\n"), 1):
        if ".ko" in line:
            paths.append(line)
        elif line:
            problems.append(_problem(file, number, line, "expected the path of a module, ending in .ko"))
    return tuple(paths), tuple(problems)


def builtin_modinfo(data: bytes, file: str, only: str = "") -> tuple[tuple[ModinfoEntry, ...], tuple[Problem, ...]]:
    """modules.builtin.modinfo: NUL-terminated strings, those of one module together (libkmod-builtin.c).

    `only`: the one key to be told, as `alias`; else all are.
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
    """modules.devname: every node, in its order."""
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


def dep_text(lines: Iterable[DepLine]) -> str:
    """modules.dep; a module without dependencies ends in its colon (depmod output_deps)."""
    return "".join(f"{line.path}:{''.join(' ' + dep for dep in line.deps)}\n" for line in lines)


def alias_text(aliases: Iterable[tuple[str, str]]) -> str:
    """modules.alias, from pairs of a raw alias and its module in depmod's module order."""
    return ALIAS_HEAD + "".join(f"alias {alias} {module}\n" for alias, module in aliases)


def symbols_text(owners: Mapping[str, str]) -> str:
    """modules.symbols, from the module that owns each symbol; depmod's own order is unspecified."""
    return SYMBOLS_HEAD + "".join(f"alias symbol:{symbol} {module}\n" for symbol, module in owners.items())


def softdep_text(softdeps: Iterable[tuple[str, str]]) -> str:
    """modules.softdep, from pairs of a module and the raw value of its softdep string."""
    return SOFTDEP_HEAD + "".join(f"softdep {module} {value}\n" for module, value in softdeps)


def weakdep_text(weakdeps: Iterable[tuple[str, str]]) -> str:
    """modules.weakdep (kmod 33 and later), likewise."""
    return WEAKDEP_HEAD + "".join(f"weakdep {module} {value}\n" for module, value in weakdeps)


def devname_text(nodes: Iterable[Devname]) -> str:
    """modules.devname; its head line stands only where a node follows."""
    lines = [f"{node.module} {node.node} {node.kind}{node.major}:{node.minor}\n" for node in nodes]
    return DEVNAME_HEAD + "".join(lines) if lines else ""
