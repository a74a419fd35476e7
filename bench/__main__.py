"""`make bench`: everything that is measured on this machine itself; a table, and bench/results.json."""

from __future__ import annotations

import dataclasses
import sys

from bench import depmod, lookup, ready
from bench.results import save
from bench.rows import table
from tests import trees

ROUNDS = 9


def main() -> None:
    """Measure, print, write."""
    tree = trees.debian_tree("6.1-amd64")
    rows = [
        *lookup.measure(trees.module_dir(tree), ROUNDS),
        *ready.measure(tree, ROUNDS),
        *depmod.measure(tree, ROUNDS),
    ]
    print(table(rows))
    save({"python": sys.version.split()[0], "tree": tree.name, "rows": [dataclasses.asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
