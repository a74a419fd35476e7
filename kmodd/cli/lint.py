"""`kmodd lint`: check the configuration for mistakes."""

from __future__ import annotations

import sys

from kmodd.cli import byte_code
from kmodd.cli.verb import KERNEL, ROOT, Option, Verb
from kmodd.errors import NoTree, Where
from kmodd.host.config_check import read_setup
from kmodd.host.config_files import read_settings
from kmodd.host.tree import Tree
from kmodd.planning.findings import warning
from kmodd.planning.lint import lint
from kmodd.text import encode

VERB = Verb(
    "lint",
    "Check modprobe.d, modules-load.d, depmod.d, kmodd.conf, policy.d and the kernel command line for lines and files "
    "that have no effect, or another one than they state. Print FILE:LINE: SEVERITY: TEXT [CODE] for each; "
    "docs/LINT.md explains the codes.",
    (Option("-v, --verbose", "also show findings in files of packages"), ROOT, KERNEL),
    status=((0, "no errors"), (1, "errors"), (3, "no module tree, or a damaged index")),
    examples=(
        ("lint", "Check this machine."),
        ("lint --root /mnt --kernel 6.12.48+deb13-amd64", "Check an image that is mounted at /mnt."),
    ),
)


def main(argv: list[str]) -> int:
    """Print one finding per line; return 1 if one is an error, 3 without a module tree, else 0."""
    given = VERB.parse(argv, most=0)
    if isinstance(given, int):
        return given
    root = given.get("root")
    if not root and (stale := byte_code.stale()):
        print(warning(Where(stale[0], 0), "byte-code", stale[1]), flush=True)
    tree = Tree(root, given.get("kernel") or None, extensions=read_settings(root).extensions)
    if tree.guessed:
        VERB.complain(f"kernel {tree.release}")
    try:
        tree.check()
    except NoTree as error:
        VERB.complain(f"{error}")
        return 3
    snapshot = tree.quick_snapshot()
    found = lint(read_setup(tree, snapshot))
    findings = [finding for finding in found if "verbose" in given or not finding.shipped]
    text = "".join(f"{finding}\n" for finding in findings)
    sys.stdout.buffer.write(encode(text))
    sys.stdout.flush()
    for problem in snapshot.catalog.problems:
        VERB.complain(f"{problem}")
    errors = sum(finding.severity == "error" for finding in findings)
    if findings:
        VERB.complain(f"errors: {errors}, warnings: {len(findings) - errors}")
    return 3 if snapshot.catalog.is_damaged else 1 if errors else 0
