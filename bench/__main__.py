"""`make bench`: run all benchmarks of the host, print a table, and update bench/results.json.

If other processes of the host work meanwhile, the results are printed, with their share, and not written. The exit
status is 1 then.
"""

from __future__ import annotations

import dataclasses
import os
import sys

from bench import depmod, growth, hostile, lookup, ready, start
from bench.other_work import BUSY, OtherWork
from bench.results import save
from bench.rows import table
from tests import trees

ROUNDS = 9


def main() -> int:
    """Measure, print, and save the results; return the exit status."""
    others = OtherWork()
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
    if (share := others.share()) > BUSY:
        print(f"Not written: other processes used {share:.0%} of the host's processors")
        return 1
    found = {"python": sys.version.split()[0], "tree": tree.name, "rows": [dataclasses.asdict(row) for row in rows]}
    found["growth"] = [dataclasses.asdict(curve) for curve in curves]
    save(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
