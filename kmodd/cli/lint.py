"""`kmodd lint`: mistakes in modprobe.d and on the kernel command line."""

from __future__ import annotations

import argparse
import os
import sys

from kmodd.errors import NoTree
from kmodd.host.paths import CONFIG_DIRS
from kmodd.host.tree import Tree
from kmodd.planning.lint import lint, shadowed


def main(argv: list[str]) -> int:
    """One finding a line on standard output. Exit 1 where one of them is an error, 3 where there is no module tree."""
    parser = argparse.ArgumentParser("kmodd lint", description="Look for mistakes in modprobe.d.")
    parser.add_argument("--root", default="", metavar="DIR", help="prefix of every path")
    parser.add_argument("--kernel", metavar="RELEASE", help="kernel release (default: the running one)")
    options = parser.parse_args(argv)
    tree = Tree(options.root, options.kernel)
    if tree.guessed:
        print(f"kmodd lint: kernel {tree.release}", file=sys.stderr)
    try:
        tree.check()
    except NoTree as error:
        print(f"kmodd lint: {error}", file=sys.stderr)
        return 3
    findings = lint(tree.quick_snapshot(), _hidden(tree))
    text = "".join(f"{finding}\n" for finding in findings)
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
    sys.stdout.flush()
    errors = sum(finding.severity == "error" for finding in findings)
    if findings:
        print(f"kmodd lint: errors: {errors}, warnings: {len(findings) - errors}", file=sys.stderr)
    return 1 if errors else 0


def _hidden(tree: Tree) -> list[tuple[str, str]]:
    """The files that are not read, but for those masked on purpose, with an empty file or a link to /dev/null."""
    places: list[tuple[str, list[str]]] = []
    seen = set()
    for directory in CONFIG_DIRS:
        real = os.path.realpath(tree.real(directory))  # with a merged /usr, two of them are one
        if os.path.isdir(real) and real not in seen:
            seen.add(real)
            names = [name for name in os.listdir(real) if not os.path.isdir(f"{real}/{name}")]
            places.append((directory, sorted(names)))
    return [(path, by) for path, by in shadowed(places) if _says_something(tree.real(by))]


def _says_something(path: str) -> bool:
    try:
        return os.stat(path).st_size > 0
    except OSError:
        return False
