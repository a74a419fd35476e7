"""Small root directories for tests, made out of `fixtures/rootfs/<case>/`.

A case is a directory with configuration as it lies on a machine (etc/modprobe.d, run/modprobe.d, lib/modprobe.d,
proc/cmdline, proc/modules, …) and three files of its own:

    about     one line: what is nasty here
    commands  one command line of modprobe a line
    expected  what each prints: `$ COMMAND`, standard output, standard error behind `! `, `= STATUS`

and, where needed, `missing`: paths of module files that modules.dep names and that are not there. The module tree is
`fixtures/rootfs/_tree` (cut out of Debian's 6.1), with files of the case's own lib/modules laid over it.
"""

from __future__ import annotations

import io
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kmodd.cli.kmod import modprobe
from kmodd.errors import UnmatchedBracket
from kmodd.index import bin_reader, text_files
from kmodd.kernel.proc_modules import parse_modules
from kmodd.names import module_of_path, underscores

ROOTFS = Path(__file__).resolve().parent.parent / "fixtures" / "rootfs"
RELEASE = "6.1.0-case"
_OWN = ("about", "commands", "expected", "missing")


@dataclass(frozen=True, slots=True)
class Said:
    """Output of a program, and its status."""

    out: bytes
    err: bytes
    status: int


def cases() -> list[str]:
    """The names of all cases."""
    return sorted(path.name for path in ROOTFS.iterdir() if (path / "commands").exists())


def commands(case: str) -> list[str]:
    """The command lines of a case."""
    return [line for line in (ROOTFS / case / "commands").read_text().splitlines() if line]


def has_own_tree(case: str) -> bool:
    """Whether the case has its own module tree, so that another tree does not fit."""
    return (ROOTFS / case / "missing").exists() or (ROOTFS / case / "lib" / "modules").exists()


def build(case: str, root: Path, modules: Path | None = None) -> Path:
    """Make the root directory of a case below `root`, which must be empty; with `modules` for its lib/modules."""
    source = ROOTFS / case
    shutil.copytree(source, root, symlinks=True, dirs_exist_ok=True, ignore=lambda _, names: set(names) & set(_OWN))
    if modules is not None:
        shutil.rmtree(root / "lib" / "modules", ignore_errors=True)
        (root / "lib").mkdir(exist_ok=True)
        (root / "lib" / "modules").symlink_to(modules)
    else:
        missing = source / "missing"
        directory = root / "lib" / "modules" / RELEASE
        _fill_tree(directory, missing.read_text().split() if missing.exists() else ())
    loaded = root / "proc" / "modules"
    if loaded.exists():
        for module in parse_modules(loaded.read_text()).modules.values():
            folder = root / "sys" / "module" / module.name
            folder.mkdir(parents=True)
            (folder / "initstate").write_text(f"{module.state}\n")
    return root


def _fill_tree(directory: Path, missing: Iterable[str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for file in (ROOTFS / "_tree").iterdir():
        if not (directory / file.name).exists():
            shutil.copy(file, directory)
    lines = (directory / "modules.dep").read_text().splitlines()
    for path in {path for line in lines for path in line.replace(":", " ").split()} - set(missing):
        if not path.startswith("/"):
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).touch()
    for name, data in twins(directory).items():
        if not (directory / name).exists():
            (directory / name).write_bytes(data)


def twins(directory: Path, preorder: bool = False) -> dict[str, bytes]:
    """The five .bin files that belong to the texts in a module directory, as depmod makes them; `preorder`: as 34."""

    def text(name: str) -> bytes:
        path = directory / name
        return path.read_bytes() if path.exists() else b""

    deps, _ = text_files.dep_lines(text("modules.dep"), "")
    rank = {name: number for number, name in enumerate(deps)}
    entries: dict[str, list[tuple[str, str, int]]] = {
        "modules.dep.bin": [(name, line, rank[name]) for name, line in deps.items()],
        "modules.builtin.bin": [
            (str(module_of_path(path)), "", 0) for path in text_files.module_paths(text("modules.builtin"), "")[0]
        ],
        "modules.alias.bin": [],
        "modules.symbols.bin": [],
        "modules.builtin.alias.bin": [],
    }
    for name in ("modules.alias", "modules.symbols"):
        for alias in text_files.alias_lines(text(name), "")[0]:
            entries[name + ".bin"].append((alias.pattern, alias.module, rank.get(alias.module, len(rank))))
    for entry in text_files.builtin_modinfo(text("modules.builtin.modinfo"), "")[0]:
        if entry.key == "alias":
            entries["modules.builtin.alias.bin"].append((entry.value, entry.module, 0))
    return {name: bin_reader.build(_normalised(rows), preorder=preorder) for name, rows in entries.items()}


def _normalised(rows: Iterable[tuple[str, str, int]]) -> Iterable[tuple[str, str, int]]:
    for key, value, priority in rows:
        try:
            yield underscores(key), value, priority
        except UnmatchedBracket:
            continue


def ours(argv: Sequence[str]) -> Said:
    """Run kmodd's modprobe in this process."""
    out, err = io.BytesIO(), io.BytesIO()
    kept = sys.stdout, sys.stderr
    sys.stdout = io.TextIOWrapper(out, write_through=True)
    sys.stderr = io.TextIOWrapper(err, write_through=True)
    try:
        status = modprobe.main(list(argv))
        return Said(out.getvalue(), err.getvalue(), status)
    finally:
        sys.stdout, sys.stderr = kept


def ours_in(root: Path, command: str, release: str = RELEASE) -> Said:
    """Run one command line of a case in its root."""
    return ours(["--root", str(root), "-S", release, *words(command)])


def words(command: str) -> list[str]:
    """The words of a command line, without its `modprobe`."""
    return shlex.split(command)[1:]


def transcript(command: str, said: Said) -> str:
    """One command and its output, in the form of `expected`."""
    lines = [f"$ {command}"]
    lines += said.out.decode("utf-8", "backslashreplace").splitlines()
    lines += [f"! {line}" for line in said.err.decode("utf-8", "backslashreplace").splitlines()]
    return "\n".join([*lines, f"= {said.status}"]) + "\n"
