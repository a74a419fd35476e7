"""`make fuzz`: fuzz the targets by coverage for ten minutes each, on all processors; print a table.

What was found interesting stays in the cache, and a target that has had its time is left out, so a run can be resumed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("KMODD_CACHE") or ROOT / ".cache") / "fuzz"
LIMITS = ("-timeout=10", "-rss_limit_mb=1024", "-max_len=65536")
"""Seconds and MiB of one input."""
HELPER = "helper"
"""The target that is in C: the kernel's helper, compiled with libFuzzer, ASan and UBSan."""
NAMES = (*TARGETS, HELPER)
_STAT = re.compile(r"^stat::(\w+):\s+(\d+)$", re.MULTILINE)


def fuzz(name: str, seconds: int, folder: Path) -> dict[str, Any]:
    """Fuzz one target; returns its row: seconds, cases, peak of memory in MiB, the file of a case that failed."""
    corpus = folder / name
    corpus.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    program = [compiled_helper(folder)] if name == HELPER else [sys.executable, "-m", "tests.fuzz.one", name]
    done = subprocess.run(
        [*program, f"-max_total_time={seconds}", "-print_final_stats=1", *LIMITS,
         f"-artifact_prefix={folder}/{name}-", str(corpus)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
    )  # fmt: skip
    stats = {key: int(value) for key, value in _STAT.findall(done.stdout)}
    case = re.search(rf"{re.escape(str(folder))}/{re.escape(name)}-\S+", done.stdout) if done.returncode else None
    failed = case[0] if case else done.stdout[-2000:] if done.returncode else ""
    return {
        "seconds": round(time.monotonic() - begun),
        "cases": stats.get("number_of_executed_units", 0),
        "memory": stats.get("peak_rss_mb", 0),
        "failed": failed,
    }


def compiled_helper(folder: Path) -> str:
    """Compile tests/fuzz/helper.c with clang; returns the program."""
    program = f"{folder}/{HELPER}-fuzzer"
    sanitizers = ["-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"]
    words = ["clang", "-std=gnu11", "-g", "-O1", "-Wall", "-Werror", *sanitizers, "tests/fuzz/helper.c", "-o", program]
    subprocess.run(words, cwd=ROOT, check=True)
    return program


def unfinished(rows: dict[str, dict[str, Any]], seconds: int) -> list[str]:
    """Return the targets that have failed, or not had this time at once."""
    done = {name for name, row in rows.items() if row["seconds"] >= seconds and not row["failed"]}
    return [name for name in NAMES if name not in done]


def main() -> int:
    """Return 0, 1 if a case failed, 2 without atheris, 130 if it was interrupted."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", choices=[[], *NAMES], help="TARGET=: these, though they have had theirs")
    parser.add_argument("--seconds", type=int, default=600, help="of each")
    given = parser.parse_args()
    if given.target != [HELPER] and importlib.util.find_spec("atheris") is None:
        print(f"atheris has no wheel for Python {sys.version.split()[0]}: only `make test` replays the corpus")
        return 2
    CACHE.mkdir(parents=True, exist_ok=True)
    results = CACHE / "results.json"
    rows: dict[str, dict[str, Any]] = json.loads(results.read_text()) if results.exists() else {}
    left = given.target or unfinished(rows, given.seconds)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        running = {pool.submit(fuzz, name, given.seconds, CACHE): name for name in left}
        try:
            for future in concurrent.futures.as_completed(running):
                rows[running[future]] = future.result()
                results.write_text(json.dumps(rows, indent=1))
                print(running[future], rows[running[future]], flush=True)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)  # else each of those that wait would begin
            print("interrupted; the next run goes on with what is left", file=sys.stderr)
            return 130
    print("\n| target | seconds | cases | MiB | failed |\n| --- | --- | --- | --- | --- |")
    for name in NAMES:
        if row := rows.get(name):
            print(f"| {name} | {row['seconds']} | {row['cases']:,} | {row['memory']} | {row['failed'] or '-'} |")
    return int(any(row["failed"] for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
