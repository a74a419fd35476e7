"""`kmodd lint`: check modprobe.d and the kernel command line for mistakes."""

from __future__ import annotations

import argparse
import os
import sys

from kmodd.errors import NoTree
from kmodd.host.paths import CONFIG_DIRS
from kmodd.host.tree import Tree
from kmodd.planning.lint import lint, shadowed
from kmodd.text import encode


def main(argv: list[str]) -> int:
    """Print one finding per line; return 1 if one is an error, 3 without a module tree, else 0."""
    parser = argparse.ArgumentParser("kmodd lint", description="Check modprobe.d for mistakes.")
    parser.add_argument("--root", default="", metavar="DIR", help="prefix of all paths")
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
    sys.stdout.buffer.write(encode(text))
    sys.stdout.flush()
    errors = sum(finding.severity == "error" for finding in findings)
    if findings:
        print(f"kmodd lint: errors: {errors}, warnings: {len(findings) - errors}", file=sys.stderr)
    return 1 if errors else 0


def _hidden(tree: Tree) -> list[tuple[str, str]]:
    """Return the shadowed files with those that shadow them, except files masked by an empty file or /dev/null."""
    places: list[tuple[str, list[str]]] = []
    seen = set()
    for directory in CONFIG_DIRS:
        real = os.path.realpath(tree.real(directory))  # with a merged /usr, two of them are the same
        if os.path.isdir(real) and real not in seen:
            seen.add(real)
            names = [name for name in os.listdir(real) if not os.path.isdir(f"{real}/{name}")]
            places.append((directory, sorted(names)))
    return [(path, by) for path, by in shadowed(places) if _is_nonempty(tree.real(by))]


def _is_nonempty(path: str) -> bool:
    try:
        return os.stat(path).st_size > 0
    except OSError:
        return False
