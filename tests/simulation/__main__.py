"""Search for a boot that violates an invariant: `python -m tests.simulation SEEDS`, or one seed to the step."""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.simulation.compiled import NotCompiled, build, state
from tests.simulation.coverage import Coverage, Results
from tests.simulation.draw import play_boot, play_lines
from tests.simulation.faults import FAULTS
from tests.simulation.shrink import shrink

CHUNK = 50
"""Seeds that a process takes at a time."""

COLLECT_AFTER = 20_000
"""New objects until the garbage collector runs: with Python's 700 it takes a fifth of a search's time."""

Found = tuple[Coverage, list[tuple[int, str, str]], float]
"""Coverage, (seed, kind, text) of each failure, and processor seconds."""


def search(seeds: range) -> Found:
    """Play the boots of some seeds."""
    gc.set_threshold(COLLECT_AFTER)
    coverage, failed, begin = Coverage(), [], time.process_time()
    for seed in seeds:
        boot, _ = play_boot(seed, coverage)
        if boot.kind:
            failed.append((seed, boot.kind, boot.text))
    return coverage, failed, time.process_time() - begin


def smaller(seed: int) -> tuple[list[str], str]:
    """The shrunk lines of a seed that fails, and what they violate."""
    boot, _ = play_boot(seed)
    lines = shrink(boot.lines, lambda lines: play_lines(lines)[0].kind == boot.kind)
    return lines, play_lines(lines)[0].text


def explain(seed: int) -> int:
    """Repeat one seed to the step; print the log of its shrunk script if it fails. Returns the exit status."""
    boot, sim = play_boot(seed)
    print(f"seed {seed}: faults {', '.join(boot.faults)}; digest {sim.digest()}")
    if not boot.kind:
        print("all invariants hold")
        return 0
    print(f"{boot.kind}: {boot.text}")
    lines, text = smaller(seed)
    print(f"\nshrunk from {len(boot.lines)} to {len(lines)} lines: {text}\n")
    print("\n".join(lines))
    print("\nlog:\n" + "\n".join(play_lines(lines)[1].log[-int(os.environ.get("LOG", "120")) :]))
    return 1


def run_range(first: int, last: int, path: Path, processes: int, commit: str, sources: str) -> int:
    """Play a range of seeds on all processors, and add the result to a file. Returns the exit status.

    commit, sources: the state of the sources (`compiled.state`); the file keeps those of each state apart.
    """
    results = Results(path, commit, sources)
    results.read()
    if results.has(first, last):
        print(f"{path} has seeds of {first}-{last} already", file=sys.stderr)
        return 2
    chunks = [range(seed, min(seed + CHUNK, last + 1)) for seed in range(first, last + 1, CHUNK)]
    coverage, failed, begin, used = Coverage(), [], time.monotonic(), 0.0
    with multiprocessing.Pool(processes) as pool:
        for found, wrong, seconds in pool.imap_unordered(search, chunks):
            coverage.add(found)
            used += seconds
            for seed, kind, text in wrong:
                failed.append((seed, kind))
                print(f"seed {seed}: {kind}: {text}", flush=True)
    rate = coverage.boots / max(time.monotonic() - begin, 0.001)
    print(f"seeds {first}-{last}: {len(failed)} failed, {rate:.1f} seeds a second; {coverage.summary(len(FAULTS))}")
    results.ranges.append((first, last))
    results.failed += failed
    results.seconds += used
    results.coverage.add(coverage)
    results.write()
    print(f"{path}: {results.total()}")
    for kind in sorted({kind for _, kind in failed})[:3]:
        explain(min(seed for seed, each in failed if each == kind))
    return 1 if failed else 0


def main() -> int:
    """Read the arguments. Returns the exit status: 1 if a boot failed."""
    parser = argparse.ArgumentParser(prog="tests.simulation")
    parser.add_argument("seeds", help="FIRST-LAST, or one SEED, whose steps are printed if it fails")
    parser.add_argument("--results", type=Path, default=Path("build/simulation.json"), help="where ranges add up")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--compiled", action="store_true", help="search in a copy that mypyc compiles, if it can")
    parser.add_argument("--state", nargs=2, help=argparse.SUPPRESS)
    words = parser.parse_args()
    first, dash, last = words.seeds.partition("-")
    if not dash:
        return explain(int(first))
    commit, sources = words.state or state()
    if words.compiled:
        try:
            folder = build()
        except NotCompiled as why:
            print(f"Failed to compile the simulator: {why}\nThe search goes on in Python", file=sys.stderr)
        else:
            options = ["--results", str(words.results.resolve()), "--processes", str(words.processes)]
            options += ["--state", commit, sources]
            command = [sys.executable, "-m", "tests.simulation", words.seeds, *options]
            return subprocess.call(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)})
    return run_range(int(first), int(last), words.results, words.processes, commit, sources)


if __name__ == "__main__":
    sys.exit(main())
