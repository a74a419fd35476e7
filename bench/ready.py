"""Benchmark of the daemon's start, from exec to READY=1, and of its memory after it, against a bare `python3 -c pass`.

    python3 bench/ready.py [--tree DIR] [--rounds N]

The installed daemon is started with --dry-run, on the real devices of this machine and a full Debian tree.
Rounds alternate; wall time, median and spread. Needs what kmodd needs at run time (README, Install).
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.rows import Row, row, table  # noqa: E402  (importable after the line above)

PYTHON = "/usr/bin/python3"


def main() -> None:
    """Measure, and print the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tree", type=Path)
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    if options.tree is None:
        from tests.trees import debian_tree

        options.tree = debian_tree("6.1-amd64")
    print(table(measure(options.tree, options.rounds)))


def measure(tree: Path, rounds: int) -> list[Row]:
    """Return a row for the time and one for the memory."""
    times, memory = [], []
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder, "usr")
        subprocess.run(["make", "install", f"PREFIX={prefix}"], cwd=ROOT, check=True, capture_output=True)
        start_daemon(prefix, tree, Path(folder))  # fills caches
        for _ in range(rounds):
            seconds, kib = start_daemon(prefix, tree, Path(folder))
            times.append((seconds * 1e3, bare() * 1e3))
            memory.append((kib / 1024, bare_memory() / 1024))
    return [
        row("daemon, exec to READY=1", times, "ms; peer: python3 -c pass"),
        row("daemon, resident memory after the first round", memory, "MiB; peer: python3 -c pass"),
    ]


def start_daemon(prefix: Path, tree: Path, folder: Path) -> tuple[float, int]:
    """Start the daemon; return the seconds from exec to READY=1, and its resident memory after its first round in KiB.

    In that round it reads the indexes and answers all devices; then it reports its status for the first time.
    """
    path = folder / "notify"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(60)
        begin = time.perf_counter()
        daemon = subprocess.Popen(
            [str(prefix / "bin/kmodd"), "run", "--here", str(tree), "--socket", str(folder / "io.kmodd")],
            env={**os.environ, "NOTIFY_SOCKET": str(path)}, stdout=subprocess.DEVNULL, cwd="/",
        )  # fmt: skip
        try:
            while b"READY=1" not in manager.recv(4096):
                pass
            seconds = time.perf_counter() - begin
            while not manager.recv(4096).startswith(b"STATUS="):
                pass
            return seconds, _resident(daemon.pid)
        finally:
            daemon.terminate()
            daemon.wait()


def bare() -> float:
    """Return the seconds of `python3 -c pass`."""
    begin = time.perf_counter()
    subprocess.run([PYTHON, "-c", "pass"], check=True)
    return time.perf_counter() - begin


def bare_memory() -> int:
    """Return the resident memory of a bare Python in KiB."""
    text = "print(open('/proc/self/status').read())"
    status = subprocess.run([PYTHON, "-c", text], capture_output=True, text=True, check=True).stdout
    return _rss(status)


def _resident(pid: int) -> int:
    return _rss(Path(f"/proc/{pid}/status").read_text())


def _rss(status: str) -> int:
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))


if __name__ == "__main__":
    main()
