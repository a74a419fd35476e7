"""Benchmark of a tool's whole process, against a bare Python.

    python3 -m bench.start [--tree DIR] [--rounds N]

The installed `modprobe -D NAME` is run, with its launcher and compiled byte code. The peer is `python3 -I -S -c pass`,
the cost of any isolated Python program. Rounds alternate; wall time. The output must equal that of kmod's modprobe.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from bench.rows import Row, row, table

ROOT = Path(__file__).resolve().parent.parent
BARE = ["/usr/bin/python3", "-I", "-S", "-c", "pass"]
NAME = "e1000e"


def main() -> None:
    """Measure, and print the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tree", type=Path)
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    if options.tree is None:
        from tests.trees import debian_tree

        options.tree = debian_tree("6.1-amd64")
    print(table(measure(options.tree, options.rounds)))


def measure(tree: Path, rounds: int) -> list[Row]:
    """Return one row.

    tree: a root returned by `tests.trees.debian_tree`.
    """
    (release,) = (tree / "lib" / "modules").iterdir()
    arguments = ["-d", str(tree), "-S", release.name, "-D", NAME]
    kmod = shutil.which("modprobe", path="/usr/sbin:/sbin:/usr/bin:/bin")
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder, "usr")
        subprocess.run(["make", "install", f"PREFIX={prefix}"], cwd=ROOT, check=True, capture_output=True)
        ours = [str(prefix / "lib/kmodd/bin/modprobe"), *arguments]
        if kmod and output(ours) != output([kmod, *arguments]):
            raise SystemExit("the output of modprobe -D differs from kmod's")
        pairs = []
        for turn in range(rounds + 2):
            pair = milliseconds(ours), milliseconds(BARE)
            if turn > 1:  # the first rounds fill the page cache
                pairs.append(pair)
    return [row(f"modprobe -D {NAME}, whole process", pairs, "ms; peer: python3 -I -S -c pass")]


def output(command: list[str]) -> bytes:
    """Return the output of a command."""
    return subprocess.run(command, check=True, capture_output=True).stdout


def milliseconds(command: list[str]) -> float:
    """Run a command and return its wall time in ms."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - start) * 1e3


if __name__ == "__main__":
    main()
