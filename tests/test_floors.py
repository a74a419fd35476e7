"""The house rules, read from the source with `ast`; each with a control that shows it can fail. Then ruff and mypy.

A file imports from its own floor or one below. Below the wall nothing touches the machine. Files and functions stay
short. A new file has to be given its floor here.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FLOORS = (
    # 0: words
    {"kmodd", "kmodd.dataclass", "kmodd.errors", "kmodd.names", "kmodd.glob", "kmodd.glob_regex"},
    # 1: formats
    {
        "kmodd.uevent", "kmodd.alias_tails", "kmodd.alias_trie", "kmodd.binindex", "kmodd.tables", "kmodd.modprobe_d",
        "kmodd.cmdline",
        "kmodd.boot_list", "kmodd.kmodd_conf", "kmodd.legacy_conf", "kmodd.elf", "kmodd.modinfo", "kmodd.procfs",
        "kmodd.signature", "kmodd.index_writer", "kmodd.depmod_d", "kmodd.depmod_cache", "kmodd.requester",
        "kmodd.kernel_line", "kmodd.policy_d",
        "kmodd.trace_page",
    },
    # 2: decisions
    {
        "kmodd.layer", "kmodd.catalog", "kmodd.request", "kmodd.policy", "kmodd.plan", "kmodd.resolve", "kmodd.depmod",
        "kmodd.outcome", "kmodd.explanation", "kmodd.lint", "kmodd.job", "kmodd.answers",
        "kmodd.removal", "kmodd.depmod_output", "kmodd.retries", "kmodd.standing", "kmodd.autoclean", "kmodd.rehearsal",
        "kmodd.firmware", "kmodd.repeats",
        "kmodd.verdict", "kmodd.suggestion",
        "kmodd.open_requests",
    },
    # the wall
    # 3: the machine; a name that ends in a dot stands for all below it
    {"kmodd.host", "kmodd.host."},
    # 4: programs
    {
        "kmodd.daemon", "kmodd.line", "kmodd.intake", "kmodd.view", "kmodd.guard", "kmodd.flights", "kmodd.others",
        "kmodd.carrier", "kmodd.known", "kmodd.attention", "kmodd.dispatch", "kmodd.patience", "kmodd.reprobe",
        "kmodd.kernel_requests", "kmodd.report", "kmodd.callers",
        "kmodd.cli", "kmodd.cli.",
    },
)  # fmt: skip
WALL = 3
"""Floors below this number are pure."""

PURE = frozenset(
    """__future__ abc array binascii bisect collections contextlib copy dataclasses enum errno fnmatch functools
    graphlib hashlib heapq itertools json lzma math operator re shlex stat string struct textwrap types typing
    unicodedata zlib zstandard elftools""".split()
)
"""What floors below the wall may import beside kmodd; everything else could be an effect."""

EFFECTS = frozenset({"open", "input", "print", "exec", "eval", "breakpoint", "__import__"})
"""Built-in functions that have an effect."""
COMPILES = frozenset({"kmodd.dataclass"})
"""Calls `exec` on nothing but the names of fields, as `dataclasses` does."""

MAX_FILE = 420
MAX_FUNCTION = 60


@dataclass(frozen=True)
class Source:
    """One module of kmodd."""

    name: str
    text: str
    is_package: bool = False

    @property
    def tree(self) -> ast.Module:
        """The parsed text."""
        return ast.parse(self.text)


Sources = Mapping[str, Source]


def floor_of(name: str) -> int | None:
    """The floor of a module, None if nobody has placed it."""
    for number, members in enumerate(FLOORS):
        if name in members or any(member.endswith(".") and name.startswith(member) for member in members):
            return number
    return None


def running_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that stand below `if TYPE_CHECKING:`, which never run."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from (other, *running_nodes(other))
        else:
            yield from (child, *running_nodes(child))


def imports(source: Source, known: Sources) -> set[str]:
    """The modules that `source` imports anywhere, kmodd's own by their full name."""
    found = set()
    for node in running_nodes(source.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = source.name.split(".")
                package = package[: len(package) - node.level + source.is_package]
                base = ".".join([*package, base]).rstrip(".")
            inner = {f"{base}.{alias.name}" for alias in node.names}
            modules = inner & set(known)
            found |= modules
            if inner - modules:
                found.add(base)
    return found


# ── the rules: each gives what is wrong, one line for each ─────────────────────────────────────────────────────────


def unplaced(sources: Sources) -> list[str]:
    """A newcomer has no floor yet."""
    return [f"{name}: on no floor; give it one in tests/test_floors.py" for name in sources if floor_of(name) is None]


def pointing_up(sources: Sources) -> list[str]:
    """An import from a higher floor."""
    wrong = []
    for source in sources.values():
        own = floor_of(source.name)
        for target in sorted(imports(source, sources)):
            other = floor_of(target)
            if own is not None and other is not None and other > own:
                wrong.append(f"{source.name} (floor {own}) imports {target} (floor {other})")
    return wrong


def cycles(sources: Sources) -> list[str]:
    """Modules that import each other in a ring."""
    graph = {name: imports(source, sources) & set(sources) for name, source in sources.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" -> ".join(reversed(error.args[1]))]
    return []


def effects(sources: Sources) -> list[str]:
    """What could touch the machine, below the wall."""
    wrong = []
    for source in sources.values():
        floor = floor_of(source.name)
        if floor is None or floor >= WALL:
            continue
        for target in sorted(imports(source, sources)):
            if target.split(".")[0] not in PURE | {"kmodd"}:
                wrong.append(f"{source.name}: imports {target} below the wall")
        for node in running_nodes(source.tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in EFFECTS):
                continue
            if not (node.func.id == "exec" and source.name in COMPILES):
                wrong.append(f"{source.name}:{node.lineno}: calls {node.func.id}() below the wall")
    return wrong


def too_long(sources: Sources) -> list[str]:
    """A file or a function that nobody reads in one go."""
    wrong = []
    for source in sources.values():
        length = len(source.text.splitlines())
        if length > MAX_FILE:
            wrong.append(f"{source.name}: {length} lines, more than {MAX_FILE}")
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION:
                    wrong.append(f"{source.name}.{node.name}: {length} lines, more than {MAX_FUNCTION}")
    return wrong


RULES = (unplaced, pointing_up, cycles, effects, too_long)


@pytest.fixture(scope="session")
def kmodd_sources() -> Sources:
    """All of kmodd."""
    sources = {}
    for path in sorted((ROOT / "kmodd").rglob("*.py")):
        is_package = path.name == "__init__.py"
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if is_package else parts)
        sources[name] = Source(name, path.read_text(), is_package)
    return sources


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_kmodd_keeps_the_rule(rule: Callable[[Sources], list[str]], kmodd_sources: Sources) -> None:
    assert len(kmodd_sources) > 10
    assert rule(kmodd_sources) == []


# ── controls: each rule finds what it is for, and nothing in good code ─────────────────────────────────────────────

LONG_FUNCTION = "def f():\n" + "    pass\n" * MAX_FUNCTION
CONTROLS = [
    (unplaced, {"kmodd.newcomer": ""}),
    (pointing_up, {"kmodd.names": "from kmodd import plan", "kmodd.plan": ""}),
    (pointing_up, {"kmodd.names": "import kmodd.plan", "kmodd.plan": ""}),
    (pointing_up, {"kmodd.names": "from kmodd.plan import Plan", "kmodd.plan": ""}),
    (pointing_up, {"kmodd.names": "from .plan import Plan", "kmodd.plan": ""}),
    (pointing_up, {"kmodd.names": "from . import plan", "kmodd.plan": ""}),
    (pointing_up, {"kmodd.host.tree": "def f():\n    from kmodd.cli import run", "kmodd.cli.run": ""}),
    (pointing_up, {"kmodd.host": "from ..cli import run", "kmodd.cli.run": "", "kmodd.cli": ""}),
    (cycles, {"kmodd.names": "import kmodd.errors", "kmodd.errors": "from kmodd.names import ModuleName"}),
    (cycles, {"kmodd.a": "from . import b", "kmodd.b": "from . import c", "kmodd.c": "def f():\n    from . import a"}),
    *[
        (effects, {"kmodd.plan": f"import {module}"})
        for module in "os sys socket time subprocess logging ctypes pathlib selectors signal io random os.path".split()
    ],
    (effects, {"kmodd.plan": "from os import path"}),
    (effects, {"kmodd.plan": "def f(name):\n    if name:\n        return open(name)"}),
    (effects, {"kmodd.plan": "print('loaded')"}),
    (effects, {"kmodd.plan": "if TYPE_CHECKING:\n    pass\nelse:\n    import os"}),
    (too_long, {"kmodd.plan": "a = 1\n" * (MAX_FILE + 1)}),
    (too_long, {"kmodd.plan": LONG_FUNCTION}),
    (too_long, {"kmodd.plan": "class A:\n" + textwrap.indent(LONG_FUNCTION, "    ")}),
]
GOOD = {
    "kmodd": "__version__ = '1'",
    "kmodd.errors": "from dataclasses import dataclass\nfrom collections.abc import Iterable",
    "kmodd.plan": "from kmodd import errors\nif TYPE_CHECKING:\n    import os\n    from kmodd.cli import run",
    "kmodd.host.tree": "import os, kmodd\nfrom kmodd import plan\nopen('x')",
    "kmodd.cli.run": "from kmodd.host.tree import Tree\nfrom .. import errors",
    "kmodd.cli": "",
    "kmodd.host": "from . import tree",
}


def _snippets(texts: Mapping[str, str]) -> Sources:
    packages = {"kmodd", "kmodd.host", "kmodd.cli"}
    return {name: Source(name, text, name in packages) for name, text in texts.items()}


@pytest.mark.parametrize(("rule", "texts"), CONTROLS)
def test_rule_finds_what_it_is_for(rule: Callable[[Sources], list[str]], texts: Mapping[str, str]) -> None:
    assert len(rule(_snippets(texts))) == 1


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_leaves_good_code_alone(rule: Callable[[Sources], list[str]]) -> None:
    assert rule(_snippets(GOOD)) == []


# ── tools ──────────────────────────────────────────────────────────────────────────────────────────────────────────

TOOLS = {
    "ruff": ["ruff", "check", "--quiet", "--output-format=concise", "."],
    "mypy": ["mypy"],
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("tool", TOOLS)
def test_tool_has_nothing_to_say(tool: str) -> None:
    command = [sys.executable, "-m", *TOOLS[tool]]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{tool} says:\n{done.stdout}"
