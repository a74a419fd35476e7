"""Benchmark of look-ups against libkmod and kmod's modprobe, and of the index and its memory.

    python3 bench/lookup.py [--tree DIR] [--rounds N]

Prints a row per measurement of README.md's table: kmodd, the peer, and the ratio kmodd / peer, median and spread.
Rounds alternate, each in a process of its own; CPU time is compared.

- Look-ups are complete answers, of all sources and of kmod's own configuration: `catalog.lookup` beside libkmod's
  `kmod_module_new_from_lookup`, called by a C program that is compiled here, on indexes of kmod's depmod. Both have
  read their indexes before. The same names are looked up twice; kmodd's memo of answers is emptied in between. The
  numbers of modules found must be equal.
- `kmodd lookup NAME…` is compared with `modprobe -R -a NAME…`: the time of the whole process that each name more costs.
- The peer of the index, from bytes to the first answer, is a bare `python3 -c pass`.

Needs the packages gcc, libkmod-dev, kmod, and for the tree apt and dpkg (see tests/trees.py).
"""

from __future__ import annotations

import argparse
import gc
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

from bench.cpu_time import cpu_milliseconds, output  # noqa: E402  (importable after the line above)
from bench.rows import Row, row, table  # noqa: E402
from bench.start import install, kmods  # noqa: E402

PEER = r"""
#include <libkmod.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
int main(int argc, char **argv) {
    const char *config[] = {argc > 3 ? argv[3] : NULL, NULL};
    struct kmod_ctx *ctx = kmod_new(argv[1], config);
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
            struct kmod_list *one;
            kmod_list_foreach(one, list) found++;
            kmod_module_unref_list(list);
        }
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
        printf("%f %ld\n", ((b.tv_sec - a.tv_sec) * 1e6 + (b.tv_nsec - a.tv_nsec) / 1e3) / count, found);
    }
}
"""

CONFIG = Path("/lib/modprobe.d")
"""Configuration of both: kmod's own aliases, and what other packages of this machine have added."""
MANY = 9000
"""Names of the process whose difference to one with an eighth of them is the cost of a name."""
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
    """Return all rows. tree: a module directory below ROOT/lib/modules or ROOT/usr/lib/modules."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        peer = compiled_peer(work)
        seed = int(os.environ.get("KMODD_SEED") or random.SystemRandom().randrange(2**32))
        print(f"seed: {seed}; tree: {tree.name}; python: {sys.version.split()[0]}", file=sys.stderr)
        kinds = write_names(tree, work, random.Random(seed))
        prefix = install(work)
        rows = []
        for file, what in kinds.items():
            first, again = [], []
            for _ in range(rounds):
                ours, theirs = run_child("answers", work / file, tree), peer_costs(peer, tree, work / file)
                if ours[2:] != theirs[2:]:
                    raise SystemExit(f"kmodd finds {ours[2:]} modules, libkmod {theirs[2:]}")
                first.append((ours[0], theirs[0]))
                again.append((ours[1], theirs[1]))
            rows.append(row(f"look-up, {what}, first of a name", first, "µs; peer: libkmod"))
            rows.append(row("the same, repeated", again, "µs; peer: libkmod"))
        for file, what in kinds.items():
            rows.append(slope(f"kmodd lookup, process, each of {what}", prefix, tree, work / file, rounds))
        index, memory = [], []
        for _ in range(rounds):
            first_answer, resident = run_child("index", work / "all", tree)
            index.append((first_answer, cpu_milliseconds([sys.executable, "-c", "pass"])))
            memory.append((resident, 0.0))
        rows.append(row("index, bytes of the file to the first answer", index, "ms; peer: python3 -c pass"))
        rows.append(row("memory above the imports, every name looked up once", memory, "MB"))
        return rows


def slope(what: str, prefix: Path, tree: Path, names: Path, rounds: int) -> Row:
    """Return the row of the CPU time that a name more costs `kmodd lookup` and kmod's `modprobe -R -a`."""
    root = str(tree).removesuffix(f"/lib/modules/{tree.name}").removesuffix("/usr")
    many = names.read_text().splitlines()[:MANY]
    few = many[: len(many) // 8]
    ours = [str(prefix / "bin/kmodd"), "lookup", "--root", root, "--kernel", tree.name, "--"]
    theirs = [kmods("modprobe"), "-C", "/dev/null", "-d", root, "-S", tree.name, "-R", "-a", "--"]
    modules = {word for line in output([*ours, *few]).decode().splitlines() for word in line.split("\t")[1].split()}
    if modules != set(output([*theirs, *few]).decode().split()):
        raise SystemExit("kmodd lookup and modprobe -R find other modules")
    pairs = []
    for _ in range(rounds):
        cost = [cpu_milliseconds([*command, *some]) for some in (few, many) for command in (ours, theirs)]
        each = len(many) - len(few)
        pairs.append(((cost[2] - cost[0]) * 1e3 / each, (cost[3] - cost[1]) * 1e3 / each))
    return row(what, pairs, "µs; peer: kmod's modprobe -R -a")


def compiled_peer(work: Path) -> Path:
    """Compile the C program in a directory and return its path."""
    peer = work / "peer"
    (work / "peer.c").write_text(PEER)
    subprocess.run(["gcc", "-O2", "-o", peer, work / "peer.c", "-lkmod"], check=True)
    return peer


def peer_costs(peer: Path, tree: Path, names: Path, config: Path = CONFIG) -> list[float]:
    """Return the µs of a look-up by libkmod, first of a name and repeated, and the number of modules found."""
    first, again = (line.split() for line in output([str(peer), str(tree), str(names), str(config)]).splitlines())
    return [float(first[0]), float(again[0]), float(again[1])]


def write_names(tree: Path, work: Path, rng: random.Random) -> dict[str, str]:
    """Write names to look up, in random order, one per line; return what is in each file, by the file's name."""
    patterns = [
        line.split()[1] for line in (tree / "modules.alias").read_text().splitlines() if line.startswith("alias ")
    ]
    every = [name for name in (concrete(pattern, rng) for pattern in patterns) if not set("[]") & set(name)]
    pci = [true_pci(pattern, rng) for pattern in patterns if pattern.startswith("pci:v")]
    rng.shuffle(every)
    rng.shuffle(pci)
    for file, names in (("all", every), ("pci", pci)):
        (work / file).write_text("".join(f"{name}\n" for name in names))
    return {"pci": f"{len(pci):,} PCI names", "all": f"{len(every):,} names of all patterns"}


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


def run_child(what: str, names: Path, tree: Path) -> list[float]:
    """Measure in a child process and return the figures that it prints."""
    return list(
        map(float, output([sys.executable, __file__, "--tree", str(tree), "--child", what, str(names)]).split())
    )


def child(what: str, file: Path, tree: Path) -> None:
    """Measure and print the figures of a process."""
    names = file.read_text().splitlines()
    if what == "answers":
        answers(names, tree)
    else:
        index(names, tree)


def answers(names: list[str], tree: Path) -> None:
    """Print the µs of a complete look-up, first of a name and repeated, and the number of modules found."""
    from kmodd.config import modprobe_d
    from kmodd.host.regular_files import read_file
    from kmodd.index.catalog import Catalog, Snapshot, lookup
    from kmodd.index.layer import Layer
    from kmodd.text import decode

    files = [modprobe_d.ConfFile(str(path), decode(path.read_bytes())) for path in sorted(CONFIG.glob("*.conf"))]
    config = modprobe_d.merge([modprobe_d.parse_file(file) for file in files])
    snapshot = Snapshot(Catalog([Layer(str(tree), lambda name: read_file(str(tree / name)))]), config)
    snapshot.catalog.load()
    lookup("usb:", snapshot)
    gc.freeze()  # as the daemon, at READY
    found = 0
    for _ in range(2):
        snapshot.answers.clear()
        start = time.process_time()
        for name in names:
            found += len(lookup(name, snapshot))
        print((time.process_time() - start) * 1e6 / len(names))
    print(found // 2)


def index(names: list[str], tree: Path) -> None:
    """Print the ms from the bytes of modules.alias to the first match, and the MB after a match of each name."""
    from kmodd.index.alias_trie import AliasTrie
    from kmodd.names import underscores
    from kmodd.text import decode

    names = [underscores(name) for name in names]
    before = resident()
    began = time.process_time()
    index = AliasTrie.from_text(decode((tree / "modules.alias").read_bytes()), "modules.alias")
    index.matches("pci:v00008086d00001533sv00001028sd00000001bc02sc00i00")
    first = (time.process_time() - began) * 1e3
    for name in names:
        index.matches(name)
    print(first, resident() - before)


def resident() -> float:
    """Return the resident memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
