"""`make bench`: run all benchmarks of the host, print a table, and update bench/results.json."""

from __future__ import annotations

import dataclasses
import os
import sys

from bench import depmod, growth, hostile, lookup, ready, start
from bench.results import save
from bench.rows import table
from tests import trees

ROUNDS = 9


def main() -> None:
    """Measure, print, and save the results."""
    tree = trees.debian_tree("6.1-amd64")
    rows = [
        *lookup.measure(trees.module_dir(tree), ROUNDS),
        *ready.measure(tree, ROUNDS),
        *start.measure(tree, ROUNDS),
        *depmod.measure(tree, ROUNDS),
    ]
    if os.geteuid() == 0 and (os.cpu_count() or 1) > 1:
        rows += hostile.measure(tree, hostile.REQUESTS)
    curves = growth.measure(trees.module_dir(tree), ROUNDS // 3)
    print(table(rows))
    print(growth.text_of(curves))
    found = {"python": sys.version.split()[0], "tree": tree.name, "rows": [dataclasses.asdict(row) for row in rows]}
    found["growth"] = [dataclasses.asdict(curve) for curve in curves]
    save(found)


if __name__ == "__main__":
    main()
