"""Benchmark of the tools beside kmod's own, each as a whole process.

    python3 -m bench.start [--tree DIR] [--rounds N]

`modprobe -D NAME`, `modinfo NAME` and `lsmod` are run as installed, with their launcher and byte code, and kmod's own
program on the same files. Rounds alternate; CPU time, user and system. The outputs must be equal.

lsmod lists the first LOADED modules of the tree and what they need, as if they were loaded: /proc/modules and
/sys/module are replaced in a mount namespace, which needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.cpu_time import cpu_milliseconds, output
from bench.rows import Row, row, table

ROOT = Path(__file__).resolve().parent.parent
NAME = "e1000e"
LOADED = 60
"""Modules that lsmod lists, without those that they need."""
KMOD = "/usr/sbin:/sbin:/usr/bin:/bin"

Pairs = list[tuple[float, float]]


def main() -> None:
    """Measure, and print the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tree", type=Path)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--pairs", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pairs:
        ours, theirs, rounds = options.pairs
        print(json.dumps(compared([ours], [theirs], int(rounds))))
        return
    if options.tree is None:
        from tests.trees import debian_tree

        options.tree = debian_tree("6.1-amd64")
    print(table(measure(options.tree, options.rounds)))


def measure(tree: Path, rounds: int) -> list[Row]:
    """Return a row for each tool; that of lsmod only for root.

    tree: a root returned by `tests.trees.debian_tree`.
    """
    (release,) = (tree / "lib" / "modules").iterdir()
    words = {
        "modprobe": ["-d", str(tree), "-S", release.name, "-D", NAME],
        "modinfo": ["-b", str(tree), "-k", release.name, NAME],
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tools = install(Path(folder)) / "lib/kmodd/bin"
        for tool, arguments in words.items():
            pairs = compared([str(tools / tool), *arguments], [kmods(tool), *arguments], rounds)
            option = " -D" if "-D" in arguments else ""
            rows.append(row(f"{tool}{option} {NAME}, whole process", pairs, f"ms; peer: kmod's {tool}"))
        if os.geteuid() == 0:
            count = load(release, Path(folder))
            pairs = compared_lsmod(str(tools / "lsmod"), Path(folder), rounds)
            rows.append(row(f"lsmod, {count} modules, whole process", pairs, "ms; peer: kmod's lsmod"))
    return rows


def install(folder: Path) -> Path:
    """Install kmodd below a directory and return the prefix."""
    prefix = folder / "usr"
    subprocess.run(["make", "install", f"PREFIX={prefix}"], cwd=ROOT, check=True, capture_output=True)
    return prefix


def kmods(tool: str) -> str:
    """Return the path of kmod's tool. Exits if there is none."""
    found = shutil.which(tool, path=KMOD)
    if not found:
        raise SystemExit(f"no {tool} to compare with: install kmod")
    return found


def compared(ours: list[str], theirs: list[str], rounds: int) -> Pairs:
    """Return the ms of both commands in each round. Exits if their outputs differ."""
    if output(ours) != output(theirs):
        raise SystemExit(f"the output of {' '.join(ours)} differs from that of {' '.join(theirs)}")
    pairs = [(cpu_milliseconds(ours), cpu_milliseconds(theirs)) for _ in range(rounds + 2)]
    return pairs[2:]  # the first rounds fill the page cache


# ── lsmod ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def load(release: Path, folder: Path) -> int:
    """Write `proc/modules` and `sys/module` to a directory, as of a machine with modules of a tree; return how many."""
    lines = [line.partition(":") for line in (release / "modules.dep").read_text().splitlines()]
    needs = {_name(path): [_name(each) for each in deps.split()] for path, _, deps in lines}
    some = dict.fromkeys(each for name in list(needs)[:LOADED] for each in (*reversed(needs[name]), name))
    (folder / "proc").mkdir()
    text = ""
    for name in some:
        users = [user for user in some if name in needs[user]]
        text += f"{name} 16384 {len(users)} {''.join(f'{user},' for user in users) or '-'} Live 0x0000000000000000\n"
        facts = folder / "sys/module" / name
        for user in users:
            (facts / "holders" / user).mkdir(parents=True)
        (facts / "holders").mkdir(parents=True, exist_ok=True)
        for fact, value in (("coresize", "16384"), ("refcnt", str(len(users))), ("initstate", "live")):
            (facts / fact).write_text(f"{value}\n")
    (folder / "proc/modules").write_text(text)
    return len(some)


def compared_lsmod(ours: str, folder: Path, rounds: int) -> Pairs:
    """Return what `compared` does, of lsmod on the files of `load`."""
    mounts = f"mount --bind {folder}/sys/module /sys/module && mount --bind {folder}/proc /proc"
    command = [sys.executable, "-m", "bench.start", "--pairs", ours, kmods("lsmod"), str(rounds)]
    inside = ["unshare", "--mount", "sh", "-ec", f'{mounts}; exec "$@"', "sh", *command]
    done = subprocess.run(inside, cwd=ROOT, check=True, capture_output=True, text=True)
    return [(mine, theirs) for mine, theirs in json.loads(done.stdout)]


def _name(path: str) -> str:
    return path.rpartition("/")[2].partition(".")[0].replace("-", "_")


if __name__ == "__main__":
    main()
