"""The house rules, read from the source with `ast`; each with a control that shows it can fail. Then ruff and mypy.

The listing of kmodd/ is the architecture: a folder imports itself and the folders before it; one rule draws the wall.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

WORDS = ""
"""The files that stand in kmodd/ itself."""
PURE_FOLDERS = (WORDS, "config", "kernel", "index", "modfile", "planning", "state", "engine")
"""Above the wall: nothing here touches the machine."""
FOLDERS = (*PURE_FOLDERS, "host", "loader", "daemon", "cli")
"""In the order of CONTRIBUTING.md. A file imports from its own folder or one before it."""

PURE = frozenset(
    """__future__ abc array binascii bisect bz2 collections contextlib copy dataclasses difflib enum errno fnmatch
    functools graphlib hashlib heapq itertools json lzma math operator re shlex stat string struct textwrap types typing
    unicodedata zlib zstandard elftools""".split()
)
"""Modules that files above the wall may import beside kmodd; every other one could be an effect."""

EFFECTS = frozenset({"open", "input", "print", "exec", "eval", "breakpoint", "__import__"})
"""Built-in functions that have an effect."""
COMPILES = frozenset({"kmodd.dataclass"})
"""Calls `exec` on nothing but the names of fields, as `dataclasses` does."""

MAX_FILE = 500
MAX_FUNCTION = 60
MAX_ARGUMENTS = 6
"""Arguments of a constructor."""
OWNED = frozenset({"engine", "daemon"})
"""Folders in which an object writes its own fields alone."""
MAX_ENTRIES, MAX_WORDS = 16, 5
"""Entries directly in kmodd/, and how many of them may be files."""


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


def folder_of(name: str) -> str:
    """The folder of kmodd/ that a module stands in."""
    parts = name.split(".")
    return parts[1] if len(parts) > 2 or parts[-1] in FOLDERS else WORDS


def running_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that stand below `if TYPE_CHECKING:`, which never run."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from (other, *running_nodes(other))
        else:
            yield from (child, *running_nodes(child))


def imports(source: Source, known: Sources, nodes: Iterable[ast.AST] | None = None) -> set[str]:
    """The modules that `source` imports anywhere, kmodd's own by their full name.

    `nodes`: where to look for them; None: wherever code runs.
    """
    found = set()
    for node in running_nodes(source.tree) if nodes is None else nodes:
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


def all_imports(source: Source, known: Sources) -> set[str]:
    """Those of kmodd's own modules, for annotations too."""
    return imports(source, known, ast.walk(source.tree)) & set(known)


# ── the rules: each gives what is wrong, one line for each ─────────────────────────────────────────────────────────


def unplaced(sources: Sources) -> list[str]:
    """A folder that the tuple does not have, and more files in kmodd/ itself than words need."""
    found = {name.split(".")[1] for name in sources if name.count(".") > 1}
    files = [name for name in sources if folder_of(name) == WORDS and name.count(".") == 1 and name not in found]
    wrong = [f"kmodd/{folder}: give it a place in FOLDERS" for folder in sorted(found - set(FOLDERS))]
    if len(files) + 1 > MAX_WORDS:  # with __init__.py
        wrong.append(f"kmodd/: {len(files) + 1} files, more than {MAX_WORDS}: {' '.join(sorted(files))}")
    if len(found) + len(files) + 1 > MAX_ENTRIES:
        wrong.append(f"kmodd/: more than {MAX_ENTRIES} entries")
    return wrong


def pointing_up(sources: Sources) -> list[str]:
    """An import from a later folder, for an annotation too."""
    wrong = []
    for source in sources.values():
        own = folder_of(source.name)
        for target in sorted(all_imports(source, sources)):
            other = folder_of(target)
            if own in FOLDERS and other in FOLDERS and FOLDERS.index(other) > FOLDERS.index(own):
                wrong.append(f"{source.name} imports {target}, which is later")
    return wrong


def cycles(sources: Sources) -> list[str]:
    """Modules that import each other in a ring, for annotations too."""
    graph = {name: all_imports(source, sources) - {name} for name, source in sources.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" -> ".join(reversed(error.args[1]))]
    return []


def effects(sources: Sources) -> list[str]:
    """An import or a call above the wall that could touch the machine."""
    wrong = []
    for source in sources.values():
        if folder_of(source.name) not in PURE_FOLDERS:
            continue
        for target in sorted(imports(source, sources)):
            if target.split(".")[0] not in PURE | {"kmodd"}:
                wrong.append(f"{source.name}: imports {target} above the wall")
        for node in running_nodes(source.tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in EFFECTS):
                continue
            if not (node.func.id == "exec" and source.name in COMPILES):
                wrong.append(f"{source.name}:{node.lineno}: calls {node.func.id}() above the wall")
    return wrong


def too_long(sources: Sources) -> list[str]:
    """A file or a function that is too long."""
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


def constructors(sources: Sources) -> list[str]:
    """A class with behaviour whose constructor takes too many arguments; a dataclass holds values and is exempt."""
    wrong = []
    for source in sources.values():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                each = node.args
                count = len(each.posonlyargs) + len(each.args) + len(each.kwonlyargs) - 1
                if count > MAX_ARGUMENTS:
                    wrong.append(f"{source.name}:{node.lineno}: {count} arguments, more than {MAX_ARGUMENTS}")
    return wrong


def foreign_writes(sources: Sources) -> list[str]:
    """A field of another object that is written in the engine or the daemon: each object writes its own."""
    wrong = []
    for source in sources.values():
        if folder_of(source.name) not in OWNED:
            continue
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.Attribute) or isinstance(node.ctx, ast.Load):
                continue
            if ast.unparse(node.value) != "self":
                wrong.append(f"{source.name}:{node.lineno}: writes {ast.unparse(node)}")
    return wrong


def imports_of_tests(sources: Sources) -> list[str]:
    """An import from a test file; shared helpers stand in a module without tests."""
    wrong = []
    for source in sources.values():
        for target in sorted(imports(source, sources, ast.walk(source.tree))):
            if target.split(".")[0] == "tests" and target.split(".")[-1].startswith("test_"):
                wrong.append(f"{source.name} imports {target}, a test file")
    return wrong


def is_private(name: str) -> bool:
    """Whether a name is private to a class or module."""
    return name.startswith("_") and not name.startswith("__")


def private_names(sources: Sources) -> list[str]:
    """A private name of another module or object that is read, imported or replaced."""
    wrong = []
    for source in sources.values():
        for node in ast.walk(source.tree):
            names: list[str] = []
            if isinstance(node, ast.Attribute) and ast.unparse(node) != "os._exit":
                names = [node.attr] if ast.unparse(node.value) not in {"self", "cls"} else []
            elif isinstance(node, ast.ImportFrom):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("setattr"):
                texts = [each.value for each in node.args[:2] if isinstance(each, ast.Constant)]
                names = [text.split(".")[-1] for text in texts if isinstance(text, str)]
            wrong += [f"{source.name}:{node.lineno}: uses {name}" for name in names if is_private(name)]  # type: ignore[attr-defined]
    return wrong


RULES = (unplaced, pointing_up, cycles, effects, too_long, constructors, foreign_writes)
TEST_RULES = (imports_of_tests, private_names)


def read_sources(folder: str) -> Sources:
    """All modules of a folder of the repository."""
    sources = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        is_package = path.name == "__init__.py"
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if is_package else parts)
        sources[name] = Source(name, path.read_text(), is_package)
    return sources


@pytest.fixture(scope="session")
def kmodd_sources() -> Sources:
    """All of kmodd."""
    return read_sources("kmodd")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_kmodd_keeps_the_rule(rule: Callable[[Sources], list[str]], kmodd_sources: Sources) -> None:
    assert len(kmodd_sources) > 10
    assert rule(kmodd_sources) == []


@pytest.mark.parametrize("rule", TEST_RULES, ids=lambda rule: rule.__name__)
def test_tests_keep_the_rule(rule: Callable[[Sources], list[str]]) -> None:
    sources = read_sources("tests")
    assert len(sources) > 100
    assert rule(sources) == []


# ── controls: each rule finds what it is for, and nothing in good code ─────────────────────────────────────────────

LONG_FUNCTION = "def f():\n" + "    pass\n" * MAX_FUNCTION
CONTROLS = [
    (unplaced, {"kmodd.newcomers.first": ""}),
    (unplaced, {f"kmodd.{name}": "" for name in "abcde"}),
    (pointing_up, {"kmodd.names": "from kmodd.planning import plan", "kmodd.planning.plan": ""}),
    (pointing_up, {"kmodd.names": "import kmodd.planning.plan", "kmodd.planning.plan": ""}),
    (pointing_up, {"kmodd.names": "from kmodd.planning.plan import Plan", "kmodd.planning.plan": ""}),
    (pointing_up, {"kmodd.names": "from .planning.plan import Plan", "kmodd.planning.plan": ""}),
    (pointing_up, {"kmodd.names": "from .planning import plan", "kmodd.planning.plan": ""}),
    (pointing_up, {"kmodd.host.tree": "def f():\n    from kmodd.cli import run", "kmodd.cli.run": ""}),
    (pointing_up, {"kmodd.host": "from ..cli import run", "kmodd.cli.run": "", "kmodd.cli": ""}),
    (pointing_up, {"kmodd.names": "if TYPE_CHECKING:\n    from kmodd.state import queue", "kmodd.state.queue": ""}),
    (pointing_up, {"kmodd.config.cmdline": "from kmodd.index import layer", "kmodd.index.layer": ""}),
    (cycles, {"kmodd.names": "import kmodd.errors", "kmodd.errors": "from kmodd.names import ModuleName"}),
    (cycles, {"kmodd.a": "from . import b", "kmodd.b": "from . import c", "kmodd.c": "def f():\n    from . import a"}),
    *[
        (effects, {"kmodd.planning.plan": f"import {module}"})
        for module in "os sys socket time subprocess logging ctypes pathlib selectors signal io random os.path".split()
    ],
    (effects, {"kmodd.planning.plan": "from os import path"}),
    (effects, {"kmodd.planning.plan": "def f(name):\n    if name:\n        return open(name)"}),
    (effects, {"kmodd.planning.plan": "print('loaded')"}),
    (effects, {"kmodd.planning.plan": "if TYPE_CHECKING:\n    pass\nelse:\n    import os"}),
    (too_long, {"kmodd.planning.plan": "a = 1\n" * (MAX_FILE + 1)}),
    (too_long, {"kmodd.planning.plan": LONG_FUNCTION}),
    (constructors, {"kmodd.engine.engine": f"class A:\n    def __init__(self, {', '.join('abcdefg')}):\n        pass"}),
    (constructors, {"kmodd.host.tree": "class A:\n    def __init__(self, a, b, c, d, *, e, f, g):\n        pass"}),
    (foreign_writes, {"kmodd.engine.engine": "def f(state):\n    state.queue.replay = 'all'"}),
    (foreign_writes, {"kmodd.engine.engine": "def f(job):\n    job.begun, x = True, 1"}),
    (foreign_writes, {"kmodd.daemon.main": "def f(counters):\n    counters.events += 1"}),
    (imports_of_tests, {"tests.test_b": "from tests.unit.test_a import Maker", "tests.unit.test_a": ""}),
    (imports_of_tests, {"tests.unit.conftest": "from tests.unit import test_a", "tests.unit.test_a": ""}),
    (imports_of_tests, {"tests.helper": "def f():\n    import tests.unit.test_a", "tests.unit.test_a": ""}),
    (private_names, {"tests.test_a": "assert watch._inotify.closed"}),
    (private_names, {"tests.test_a": "assert self.watch._stale"}),
    (private_names, {"tests.test_a": "from kmodd.cli.kmod.insmod import _names"}),
    (private_names, {"tests.test_a": "monkeypatch.setattr(kmsg_reader, '_open', fake)"}),
    (private_names, {"tests.test_a": "monkeypatch.setattr('kmodd.host.kmsg_reader._open', fake)"}),
    (too_long, {"kmodd.planning.plan": "class A:\n" + textwrap.indent(LONG_FUNCTION, "    ")}),
]
GOOD = {
    "kmodd": "__version__ = '1'",
    "kmodd.errors": "from dataclasses import dataclass\nfrom collections.abc import Iterable",
    "kmodd.planning.plan": "from kmodd import errors\nif TYPE_CHECKING:\n    import os",
    "kmodd.host.tree": "import os, kmodd\nfrom kmodd.planning import plan\nopen('x')",
    "kmodd.cli.run": "from kmodd.host.tree import Tree\nfrom .. import errors",
    "kmodd.cli": "",
    "kmodd.host": "from . import tree",
    "kmodd.engine": "class A:\n    def __init__(self, a, b, c, d, e, f):\n        self.a, self.b = a, b",
}
GOOD_TESTS = {
    "tests.test_a": "from tests.maker import Maker\nself._x = 1\nmonkeypatch.setattr(time, 'monotonic', clock)",
    "tests.maker": "class Maker: ...",
}


def _snippets(texts: Mapping[str, str]) -> Sources:
    packages = {"kmodd", "kmodd.host", "kmodd.cli", "kmodd.planning", "kmodd.engine"}
    return {name: Source(name, text, name in packages) for name, text in texts.items()}


@pytest.mark.parametrize(("rule", "texts"), CONTROLS)
def test_rule_finds_what_it_is_for(rule: Callable[[Sources], list[str]], texts: Mapping[str, str]) -> None:
    assert len(rule(_snippets(texts))) == 1


@pytest.mark.parametrize("rule", [*RULES, *TEST_RULES], ids=lambda rule: rule.__name__)
def test_rule_leaves_good_code_alone(rule: Callable[[Sources], list[str]]) -> None:
    assert rule(_snippets(GOOD_TESTS if rule in TEST_RULES else GOOD)) == []


# ── language ─────────────────────────────────────────────────────────────────────────────────────────────────────────

TEXTS = (
    "kmodd",
    "systemd",
    "debian",
    "data",
    "docs",
    "tests",
    "bench",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "Makefile",
)
"""Where the words are searched: files and folders of the repository."""
IDIOMS = re.compile(
    r"""\b(somebody|whoever|whosever|anew|is\ told|came\ of|comes\ of)\b
    | (?<!["'`])(?-i:\b[nN]obody\b)(?!["'`])  # the user has quotes, or is a constant
    | ^\s*\"""Likewise\.\"""  # as a whole docstring
    | (?<=[.:;]\ )It\.  # as a whole sentence""",
    re.VERBOSE | re.MULTILINE | re.IGNORECASE,
)
"""Words of our own idiom: a systemd or kernel developer would name the subject."""


def idioms(name: str, text: str) -> list[str]:
    """The places where a text has a word of the list."""
    return [f"{name}:{text.count(chr(10), 0, found.start()) + 1}: {found[0]!r}" for found in IDIOMS.finditer(text)]


def test_texts_name_their_subject() -> None:
    """Docstrings, comments, messages, units and documents; this file has the list."""
    wrong = []
    for folder in TEXTS:
        path = ROOT / folder
        for each in [path] if path.is_file() else sorted(path.rglob("*")):
            if each.is_file() and each != Path(__file__) and "__pycache__" not in each.parts:
                wrong += idioms(str(each.relative_to(ROOT)), each.read_text(errors="replace"))
    assert wrong == []


@pytest.mark.parametrize(
    "text", ["nobody asks", "Whoever asks", "it is told once", 'def f():\n    """Likewise."""', "A file. It."]
)
def test_an_idiom_is_found(text: str) -> None:
    assert len(idioms("x", text)) == 1


def test_the_user_nobody_is_no_idiom() -> None:
    assert idioms("x", 'setpriv --reuid "nobody"; `nobody`; likewise, the outcomes of it') == []


# ── tools ──────────────────────────────────────────────────────────────────────────────────────────────────────────

TOOLS = {
    "ruff": ["ruff", "check", "--quiet", "--output-format=concise", "."],
    "ruff format": ["ruff", "format", "--check", "--quiet", "."],
    "mypy": ["mypy"],
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("tool", TOOLS)
def test_tool_has_nothing_to_say(tool: str) -> None:
    command = [sys.executable, "-m", *TOOLS[tool]]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{tool} says:\n{done.stdout}"
