"""Compiles the engine and the simulator with mypyc, in a copy below build/, for a search of many seeds.

The sources stay as they are. In the copy, `prepared` changes what mypyc does not take; a boot is the same to the step
(`test_compiled.py`). A copy belongs to one state of the sources and one Python, and is built once, in three minutes.
"""

from __future__ import annotations

import ast
import hashlib
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]

FOLDERS: Final = (
    "kmodd/config", "kmodd/engine", "kmodd/index", "kmodd/kernel", "kmodd/planning", "kmodd/state", "tests/simulation",
)  # fmt: skip
"""Folders of which all that a boot imports is compiled."""

FILES: Final = (
    "kmodd/daemon/round.py", "kmodd/daemon/startup.py", "kmodd/errors.py", "kmodd/host/journal.py", "kmodd/names.py",
)  # fmt: skip
"""Files of other folders that are compiled, too."""

_IMPORTED: Final = """
import sys
import tests.simulation.draw
print(*(module.__file__ for module in sys.modules.values() if getattr(module, "__file__", None)), sep="\\n")
"""

_SETUP: Final = """
import sys
from mypyc.build import mypycify
from setuptools import setup
files = sys.argv[1:]
sys.argv[1:] = ["--quiet", "build_ext", "--inplace"]
setup(name="simulation", packages=[], ext_modules=mypycify(files, opt_level="2", debug_level="0", multi_file=True))
"""


class NotCompiled(Exception):
    """There is no compiled copy, for the reason that the text has."""


def prepared(text: str) -> str:
    """Return a source as mypyc takes it.

    It has no `if TYPE_CHECKING` of a constant, as mypyc refuses its else branch; dataclasses of the standard library
    without slots, as all its classes have them; and none that is frozen, as their `__init__` would not be compiled.
    """
    if re.search(r"^TYPE_CHECKING = False$", text, re.MULTILINE):
        text = _unconditional(text)
    text = text.replace("from kmodd.dataclass import", "from dataclasses import")
    text = re.sub(r"@dataclass\(([^)]*)\)", _decorator, text)
    return re.sub(r"\b(\w+)\.__match_args__", r'getattr(\1, "__match_args__")', text)


def _decorator(found: re.Match[str]) -> str:
    words = [word for word in found[1].split(", ") if word != "slots=True"]
    if "frozen=True" in words:
        words.remove("frozen=True")
        words += [] if "eq=False" in words else ["unsafe_hash=True"]
    return f"@dataclass({', '.join(words)})"


def _unconditional(text: str) -> str:
    """Put the body of each `if TYPE_CHECKING` in place of the statement; its else branch goes."""
    lines = text.splitlines()
    for node in reversed(ast.parse(text).body):
        if isinstance(node, ast.Assign) and lines[node.lineno - 1] == "TYPE_CHECKING = False":
            lines[node.lineno - 1] = ""
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            body = "\n".join(lines[node.body[0].lineno - 1 : node.body[-1].end_lineno])
            lines[node.lineno - 1 : node.end_lineno] = textwrap.dedent(body).splitlines()
    return "\n".join(lines) + "\n"


def sources() -> list[str]:
    """Return the paths of the files to compile, below ROOT: of those that a boot imports."""
    command = [sys.executable, "-c", _IMPORTED]
    imported = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    found = sorted(str(Path(path).relative_to(ROOT)) for path in imported if path.startswith(f"{ROOT}/"))
    return [
        path
        for path in found
        if path in FILES or (path.rpartition("/")[0] in FOLDERS and not path.endswith("/__init__.py"))
    ]


def state() -> tuple[str, str]:
    """Return the commit, empty where there is no repository, and a hash of the sources that a boot follows from."""
    commit = ""
    if shutil.which("git"):
        command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        commit = done.stdout.strip()
    return commit, _digest(sources())


def build() -> Path:
    """Return the folder of the compiled copy, which is built if there is none. Raises NotCompiled."""
    copied = _copied()
    folder = ROOT / "build" / f"simulation-{_digest(copied)}"
    if (folder / "complete").exists():
        return folder
    if shutil.which("gcc") is None:
        raise NotCompiled("there is no gcc")
    compiled = sources()
    print(f"compiling {len(compiled)} files in {folder}, which takes a few minutes", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    for path in copied:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        text = (ROOT / path).read_text("utf-8", "surrogateescape")
        target.write_text(prepared(text) if path in compiled else text, "utf-8", "surrogateescape")
    shutil.copytree(ROOT / "tests/simulation/scripts", folder / "tests/simulation/scripts")
    command = [sys.executable, "-c", _SETUP, *compiled]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise NotCompiled("\n".join(["mypyc has failed:", *done.stdout.splitlines()[-10:]]))
    shutil.rmtree(folder / "build")
    (folder / "complete").touch()
    return folder


def _copied() -> list[str]:
    """The paths of what a search can import, below ROOT."""
    found = [*(ROOT / "kmodd").rglob("*.py"), *(ROOT / "tests").glob("*.py"), *(ROOT / "tests/simulation").glob("*.py")]
    return sorted(str(path.relative_to(ROOT)) for path in found if not path.name.startswith("test_"))


def _digest(paths: Iterable[str]) -> str:
    found = hashlib.sha256(sys.version.encode())
    for path in paths:
        found.update(path.encode() + b"\0" + (ROOT / path).read_bytes())
    return found.hexdigest()[:12]
