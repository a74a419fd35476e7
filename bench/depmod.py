"""Benchmark of depmod against kmod's, on a full tree and after a module was added.

    python3 bench/depmod.py [--tree DIR] [--rounds N]

Both run on a copy of the tree's module directory. kmod has no incremental depmod: the peer of "one module added" is its
full run. Each round runs kmod's depmod, ours without a cache (which is written), and ours with one module more than in
the cache; the indexes of both are compared. Wall time of the whole process.
Needs kmod, and for the tree apt and dpkg (see tests/trees.py).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.rows import Row, row, table  # noqa: E402  (importable after the line above)
from kmodd.index.bin_reader import BinIndex  # noqa: E402

LAUNCHER = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
sys.path.append("/usr/lib/python3/dist-packages")
from kmodd.cli.__main__ import leave, main
leave(main(["depmod", *sys.argv[1:]]))
"""
OURS = ["/usr/bin/python3", "-ISXutf8", "-c", LAUNCHER]
CACHE = "modules.kmodd-cache"
WEAKDEP = "modules.weakdep"


def main() -> None:
    """Measure, and print the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tree", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if options.tree is None:
        from tests.trees import debian_tree

        options.tree = debian_tree("6.1-amd64")
    print(table(measure(options.tree, options.rounds)))


def measure(tree: Path, rounds: int) -> list[Row]:
    """Return a row for a full run and one for an added module.

    tree: a root returned by `tests.trees.debian_tree`.
    """
    (source,) = (tree / "lib" / "modules").iterdir()
    kmod = shutil.which("depmod", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if not kmod:
        raise SystemExit("no depmod to compare with: install kmod")
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder, "lib", "modules", source.name)
        shutil.copytree(source, directory, symlinks=True)
        count = len((directory / "modules.dep").read_text().splitlines())
        arguments = ["-b", folder, source.name]
        time.sleep(0.2)  # depmod does not cache files written just before its run
        spare = next(directory.glob("kernel/**/loop.ko*"))
        added = directory / "extra" / spare.name.replace("loop", "loop_again")
        full, more = [], []
        for turn in range(rounds + 1):
            theirs = seconds([kmod, *arguments])
            before = index(directory)
            (directory / CACHE).unlink(missing_ok=True)
            ours = seconds([*OURS, *arguments])
            if index(directory) != before:
                raise SystemExit("the indexes differ")
            added.parent.mkdir(exist_ok=True)
            shutil.copy(spare, added)
            one_more = seconds([*OURS, *arguments])
            if index(directory) == before:
                raise SystemExit("the added module is not in the index")
            added.unlink()
            if turn:  # the first round fills the page cache and writes byte code
                full.append((ours * 1e3, theirs * 1e3))
                more.append((one_more * 1e3, theirs * 1e3))
    return [
        row(f"depmod, full, {count:,} modules", full, "ms; peer: kmod's depmod"),
        row("depmod, one module added", more, "ms; peer: kmod's depmod, full"),
    ]


def index(directory: Path) -> dict[str, object]:
    """Return the contents of the index files that both write, by name: of binary ones, whose layout is another since
    kmod 34, the rows.
    """
    found: dict[str, object] = {}
    for path in directory.glob("modules.*"):
        if path.name not in (CACHE, WEAKDEP):
            data = path.read_bytes()
            found[path.name] = list(BinIndex(data, path.name).entries()) if path.suffix == ".bin" else data
    return found


def seconds(command: list[str]) -> float:
    """Run a command and return its wall time in seconds."""
    start = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
