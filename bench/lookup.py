"""Benchmark of the alias index against libkmod: time of look-ups, memory.

    python3 bench/lookup.py [--tree DIR] [--rounds N]

Prints a row per measurement of README.md's table: kmodd, the peer, and the ratio kmodd / peer, median and spread. The
peer of look-ups is libkmod's `kmod_module_new_from_lookup`, called by a C program that is compiled here, on indexes of
kmod's depmod. The peer of the index is a bare `python3 -c pass`. Rounds alternate, each in a process of its own;
CPU time is compared. Before the measurement, every name is looked up once, and libkmod loads its indexes. Results are
not cached, except in the row that says so.

Needs the packages gcc, libkmod-dev, kmod, and for the tree apt and dpkg (see tests/trees.py).
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.rows import Row, row, table  # noqa: E402  (importable after the line above)

PEER = r"""
#include <libkmod.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
int main(int argc, char **argv) {
    const char *no_config = NULL;
    struct kmod_ctx *ctx = kmod_new(argv[1], &no_config);
    if (argc < 3 || !ctx || kmod_load_resources(ctx) < 0) return 1;
    size_t count = 0, room = 0, cap = 0;
    char **names = NULL, *line = NULL;
    FILE *file = fopen(argv[2], "r");
    if (!file) return 1;
    for (ssize_t n; (n = getline(&line, &cap, file)) > 0;) {
        line[n - 1] = 0;
        if (count == room) names = realloc(names, (room = room ? 2 * room : 1024) * sizeof *names);
        names[count++] = strdup(line);
    }
    for (int round = 0; round < 2; round++) {  /* the first one fills caches */
        struct timespec a, b;
        long found = 0;
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
        for (size_t i = 0; i < count; i++) {
            struct kmod_list *list = NULL;
            kmod_module_new_from_lookup(ctx, names[i], &list);
            found += list != NULL;
            kmod_module_unref_list(list);
        }
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
        if (round) printf("%f %ld\n", ((b.tv_sec - a.tv_sec) * 1e6 + (b.tv_nsec - a.tv_nsec) / 1e3) / count, found);
    }
}
"""

SOME = 4000
"""Fewer names than kmodd caches."""
WIDTH = {"v": 8, "d": 8, "sv": 8, "sd": 8, "bc": 2, "sc": 2, "i": 2}
FILL = "0123456789ABCDEFabcdefgxyzsvdpc:,_. "


def main() -> None:
    """Measure, and print the rows."""
    options = argparse.ArgumentParser(description="Benchmark look-ups and index against libkmod and a bare Python.")
    options.add_argument("--tree", type=Path, help="a folder with modules.alias and kmod's .bin files; else Debian's")
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        child(given.child[0], Path(given.child[1]), given.tree)
        return
    print(table(measure(given.tree or debian_tree(), given.rounds)))


def debian_tree() -> Path:
    """Return the module directory of a full Debian kernel."""
    from tests import trees

    return trees.module_dir(trees.debian_tree("6.1-amd64"))


def measure(tree: Path, rounds: int) -> list[Row]:
    """Return all rows."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        peer = compiled_peer(work)
        seed = int(os.environ.get("KMODD_SEED") or random.SystemRandom().randrange(2**32))
        print(f"seed: {seed}; tree: {tree.name}; python: {sys.version.split()[0]}", file=sys.stderr)
        write_names(tree, work, random.Random(seed))
        rows = []
        for what, how, file in (
            ("look-up, PCI names of true shape", "lookup", "pci"),
            ("look-up, all patterns made concrete", "lookup", "all"),
            ("look-up, of all sources, an alias seen before", "memo", "some"),
        ):
            pairs = []
            for _ in range(rounds):
                ours = float(run_child(how, work / file, tree)[0])
                pairs.append((ours, peer_cost(peer, tree, work / file)))
            rows.append(row(what, pairs, "µs"))
        index, memory = [], []
        for _ in range(rounds):
            first, resident = map(float, run_child("index", work / "all", tree))
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", "pass"], check=True)
            index.append((first, (time.perf_counter() - began) * 1e3))
            memory.append((resident, 0.0))
        rows.append(row("index, bytes of the file to the first answer", index, "ms; peer: python3 -c pass"))
        rows.append(row("memory above the imports, every name looked up once", memory, "MB"))
        return rows


def compiled_peer(work: Path) -> Path:
    """Compile the C program in a directory and return its path."""
    peer = work / "peer"
    (work / "peer.c").write_text(PEER)
    subprocess.run(["gcc", "-O2", "-o", peer, work / "peer.c", "-lkmod"], check=True)
    return peer


def peer_cost(peer: Path, tree: Path, names: Path) -> float:
    """Return the µs of a look-up by libkmod."""
    return float(subprocess.run([peer, tree, names], check=True, capture_output=True).stdout.split()[0])


def write_names(tree: Path, work: Path, rng: random.Random) -> None:
    """Write names to look up, in random order, one per line, to the files `pci`, `all`, and `some` of all."""
    patterns = [
        line.split()[1] for line in (tree / "modules.alias").read_text().splitlines() if line.startswith("alias ")
    ]
    every = [concrete(pattern, rng) for pattern in patterns]
    pci = [true_pci(pattern, rng) for pattern in patterns if pattern.startswith("pci:v")]
    rng.shuffle(every)
    rng.shuffle(pci)
    for file, names in (("all", every), ("pci", pci), ("some", every[:SOME])):
        (work / file).write_text("".join(f"{name}\n" for name in names))


def concrete(pattern: str, rng: random.Random) -> str:
    """Return a name that matches the pattern; `*` is replaced by 0 to 12 characters, hexadecimal or not."""
    name = re.sub(r"\[(!?)(.)[^]]*\]", lambda match: "~" if match[1] else match[2], pattern)
    name = re.sub(r"\?", lambda _: rng.choice(FILL), name)
    return re.sub(r"\*", lambda _: "".join(rng.choices(FILL, k=rng.choice((0, 0, 1, 2, 4, 8, 8, 12)))), name)


def true_pci(pattern: str, rng: random.Random) -> str:
    """Return the modalias of a PCI device that matches the pattern, in the kernel's format."""
    fields = re.findall(r"(v|d|sv|sd|bc|sc|i)(\*|[0-9A-F]+)", pattern.removeprefix("pci:"))
    return "pci:" + "".join(
        field + (value if value != "*" else f"{rng.randrange(16 ** WIDTH[field]):0{WIDTH[field]}X}")
        for field, value in fields
    )


def run_child(what: str, names: Path, tree: Path) -> list[str]:
    """Measure in a child process and return the words that it prints."""
    command = [sys.executable, __file__, "--tree", str(tree), "--child", what, str(names)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def child(what: str, file: Path, tree: Path) -> None:
    """Measure one figure and print it."""
    from kmodd.index.alias_trie import AliasTrie
    from kmodd.names import underscores
    from kmodd.text import decode

    names = file.read_text().splitlines()
    names = [underscores(name) for name in names if "[" not in name and "]" not in name]
    if what == "memo":
        cached(names, tree)
        return
    before = resident()
    began = time.perf_counter()
    index = AliasTrie.from_text(decode((tree / "modules.alias").read_bytes()), "modules.alias")
    index.matches("pci:v00008086d00001533sv00001028sd00000001bc02sc00i00")
    first = (time.perf_counter() - began) * 1e3
    matches = index.matches
    for name in names:
        matches(name)
    if what == "index":
        print(first, resident() - before)
        return
    start = time.process_time()
    for name in names:
        matches(name)
    print((time.process_time() - start) * 1e6 / len(names))


def cached(names: list[str], tree: Path) -> None:
    """Print the cost of a cached look-up in all sources."""
    from kmodd.config.modprobe_d import Config
    from kmodd.host.regular_files import read_file
    from kmodd.index.catalog import Catalog, Snapshot, lookup
    from kmodd.index.layer import Layer

    snapshot = Snapshot(Catalog([Layer(str(tree), lambda name: read_file(str(tree / name)))]), Config())
    for name in names:
        lookup(name, snapshot)
    start = time.process_time()
    for _ in range(10):
        for name in names:
            lookup(name, snapshot)
    print((time.process_time() - start) * 1e5 / len(names))


def resident() -> float:
    """Return the resident memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
