"""`kmodd lint`: check the configuration for mistakes."""

from __future__ import annotations

import argparse
import sys

from kmodd.cli import byte_code
from kmodd.errors import NoTree, Where
from kmodd.host.config_check import read_setup
from kmodd.host.config_files import read_settings
from kmodd.host.tree import Tree
from kmodd.planning.findings import warning
from kmodd.planning.lint import lint
from kmodd.text import encode

DESCRIPTION = """Check modprobe.d, modules-load.d, depmod.d, kmodd.conf, policy.d and the kernel command line for lines
and files that have no effect, or another one than they state. Print FILE:LINE: SEVERITY: TEXT [CODE] for each; exit
status 1: there are errors, 3: no module tree. The codes are explained in docs/LINT.md."""


def main(argv: list[str]) -> int:
    """Print one finding per line; return 1 if one is an error, 3 without a module tree, else 0."""
    parser = argparse.ArgumentParser("kmodd lint", description=DESCRIPTION)
    parser.add_argument("--root", default="", metavar="DIR", help="prefix of all paths")
    parser.add_argument("--kernel", metavar="RELEASE", help="kernel release (default: the running one)")
    parser.add_argument("-v", "--verbose", action="store_true", help="also show findings in files of packages")
    options = parser.parse_args(argv)
    if not options.root and (stale := byte_code.stale()):
        print(warning(Where(stale[0], 0), "byte-code", stale[1]), flush=True)
    tree = Tree(options.root, options.kernel, extensions=read_settings(options.root).extensions)
    if tree.guessed:
        print(f"kmodd lint: kernel {tree.release}", file=sys.stderr)
    try:
        tree.check()
    except NoTree as error:
        print(f"kmodd lint: {error}", file=sys.stderr)
        return 3
    snapshot = tree.quick_snapshot()
    found = lint(read_setup(tree, snapshot))
    findings = [finding for finding in found if options.verbose or not finding.shipped]
    text = "".join(f"{finding}\n" for finding in findings)
    sys.stdout.buffer.write(encode(text))
    sys.stdout.flush()
    for problem in snapshot.catalog.problems:
        print(f"kmodd lint: {problem}", file=sys.stderr)
    errors = sum(finding.severity == "error" for finding in findings)
    if findings:
        print(f"kmodd lint: errors: {errors}, warnings: {len(findings) - errors}", file=sys.stderr)
    return 3 if snapshot.catalog.is_damaged else 1 if errors else 0
