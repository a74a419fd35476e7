"""Benchmark of the kernel's requests while a user attacks the control socket, against the quiet daemon.

    python3 -m bench.hostile [--tree DIR] [--requests N]

The installed daemon answers the kernel, in a mount namespace with a /run of its own, on one processor. 64 connections
of uid 65534 attack it from another one, in four ways at once: empty frames, calls of Explain with 300 goals, the same
`oneway`, and calls of Status and Explain that do not wait for their replies. Meanwhile root makes N requests as the
kernel's helper does, for a name that no module has, and calls `kmodd status`. Needs root and two processors.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.rows import Row, row, table

ROOT = Path(__file__).resolve().parent.parent
CONTROL = "/run/kmodd/io.kmodd"
HELPERS = "/run/kmodd/request"
NOBODY = 65534
CONNECTIONS = 64
REQUESTS = 1000
DAEMONS_PROCESSOR, USERS_PROCESSOR = 0, 1
STATUS_EVERY = 50
"""Requests for one call of `kmodd status`."""


def main() -> None:
    """Measure, and print the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tree", type=Path)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(inside(options.inside, options.tree, options.requests)))
        return
    if options.tree is None:
        from tests.trees import debian_tree

        options.tree = debian_tree("6.1-amd64")
    print(table(measure(options.tree, options.requests)))


def measure(tree: Path, requests: int) -> list[Row]:
    """Return the rows: of requests, of `kmodd status`, of memory. The peer is the same daemon without an attack."""
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder, "usr")
        subprocess.run(["make", "install", f"PREFIX={prefix}"], cwd=ROOT, check=True, capture_output=True)
        command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", "bench.hostile"]
        command += ["--inside", str(prefix), "--tree", str(tree), "--requests", str(requests)]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, list[float]] = json.loads(done.stdout)
    place = len(found["attacked"]) * 99 // 100
    return [
        compared("kernel request, a user attacks: median", found, "attacked", "quiet", len(found["quiet"]) // 2, "ms"),
        compared("kernel request, a user attacks: 99 of 100", found, "attacked", "quiet", place, "ms"),
        compared("kernel request, a user attacks: the worst", found, "attacked", "quiet", -1, "ms"),
        compared(
            "kmodd status, a user attacks: median", found, "status", "quiet status", len(found["status"]) // 2, "ms"
        ),
        compared("kmodd status, a user attacks: the worst", found, "status", "quiet status", -1, "ms"),
        compared("daemon, most memory while a user attacks", found, "memory", "quiet memory", -1, "MiB"),
    ]


def compared(what: str, found: dict[str, list[float]], ours: str, theirs: str, place: int, unit: str) -> Row:
    """Return the row of the values at one place of two lists in order."""
    return row(what, [(found[ours][place], found[theirs][place])], f"{unit}; peer: quiet")


def inside(prefix: Path, tree: Path, requests: int) -> dict[str, list[float]]:
    """Measure in a mount namespace of this process; times in ms, in order, memory in MiB."""
    (modules,) = (tree / "lib/modules").iterdir()
    here = Path("/lib/modules").resolve()
    here.mkdir(exist_ok=True)
    for place in ("/run", str(here)):
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    own = here / os.uname().release
    own.mkdir()
    subprocess.run(["mount", "--bind", modules, own], check=True)
    os.sched_setaffinity(0, {DAEMONS_PROCESSOR})
    kmodd = str(prefix / "bin/kmodd")
    daemon = subprocess.Popen([kmodd, "run"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
    try:
        wait_for(lambda: is_served(daemon))
        before, quiet, quiet_status = memory(daemon.pid, "VmRSS"), *ask(kmodd, requests)
        with attackers() as count:
            attacked, status = ask(kmodd, requests)
            after = memory(daemon.pid, "VmHWM")
            if count() < CONNECTIONS:
                raise SystemExit("the attack has ended before the end")
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait()
    return {
        "quiet": sorted(quiet),
        "attacked": sorted(attacked),
        "quiet status": sorted(quiet_status),
        "status": sorted(status),
        "memory": [after],
        "quiet memory": [before],
    }


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait a minute at most."""
    until = time.monotonic() + 60
    while not condition():
        if time.monotonic() > until:
            raise SystemExit("the daemon does not answer")
        time.sleep(0.1)


def is_served(daemon: subprocess.Popen[bytes]) -> bool:
    """Return whether the daemon answers the kernel; it must live."""
    if daemon.poll() is not None:
        raise SystemExit(f"the daemon has ended with {daemon.returncode}")
    return os.path.exists(HELPERS) and os.path.exists(CONTROL)


def ask(kmodd: str, requests: int) -> tuple[list[float], list[float]]:
    """Return the ms of each request, and of each `kmodd status` between them."""
    times, status = [], []
    for number in range(requests):
        begin = time.perf_counter()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as helper:
            helper.connect(HELPERS)
            helper.send(b"net-pf-250")
            answer = b""
            while answer in (b"", b"a"):
                answer = helper.recv(16)
        times.append((time.perf_counter() - begin) * 1e3)
        if answer != b"1":
            raise SystemExit(f"the daemon has answered {answer!r}, not 1 (unknown)")
        if number % STATUS_EVERY == 0:
            begin = time.perf_counter()
            subprocess.run([kmodd, "status"], stdout=subprocess.DEVNULL, check=False)
            status.append((time.perf_counter() - begin) * 1e3)
        time.sleep(0.002)
    return times, status


def memory(pid: int, which: str) -> float:
    """Return the MiB that a process has in memory: VmRSS, or VmHWM for the most that it had (proc_pid_status(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{which}:")) / 1024


# ── the user ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def frame(method: str, *, oneway: bool = False, **parameters: object) -> bytes:
    """Return a call of the control interface."""
    words: dict[str, object] = {"method": f"io.kmodd.{method}", "parameters": parameters}
    return json.dumps(words | ({"oneway": True} if oneway else {})).encode() + b"\0"


GOALS = " ".join(f"acpi:PNP{number:04X}:" for number in range(300))
ATTACKS = (
    bytes(4096),
    frame("Explain", request=GOALS),
    frame("Explain", request=GOALS, oneway=True) * 4,
    (frame("Status") + frame("Explain", request="pci:v00008086d000010D3sv*sd*bc02sc00i00")) * 16,
)


@contextmanager
def attackers() -> Iterator[Callable[[], int]]:
    """Attack from another process; yields a function that returns how many connections it has made."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    child = os.fork()
    if child == 0:
        try:
            os.sched_setaffinity(0, {USERS_PROCESSOR})
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            attack(writer)
        finally:
            os._exit(1)
    made = 0

    def count() -> int:
        nonlocal made
        try:
            while data := os.read(reader, 65536):
                made += len(data)
        except BlockingIOError:
            pass
        return made

    try:
        wait_for(lambda: count() >= CONNECTIONS)
        yield count
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            raise SystemExit("the attacker has ended")
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(reader)
        os.close(writer)


def attack(told: int) -> None:
    """Keep CONNECTIONS busy for ever; a byte into `told` for each that is made."""
    with selectors.DefaultSelector() as selector:
        for number in range(CONNECTIONS):
            connect(selector, number, told)
        while True:
            for key, mask in selector.select(1):
                connection, number = key.fileobj, key.data
                assert isinstance(connection, socket.socket)
                try:
                    if mask & selectors.EVENT_READ and number % 4 != 3 and not connection.recv(65536):
                        raise ConnectionResetError
                    if mask & selectors.EVENT_WRITE:
                        connection.send(ATTACKS[number % 4])
                except BlockingIOError:
                    pass
                except OSError:
                    selector.unregister(connection)
                    connection.close()
                    connect(selector, number, told)


def connect(selector: selectors.BaseSelector, number: int, told: int) -> None:
    """Make a connection; those that pipeline calls do not read."""
    connection = socket.socket(socket.AF_UNIX)
    while True:
        try:
            connection.connect(CONTROL)
            break
        except OSError:  # the daemon's queue of connections is full
            time.sleep(0.001)
    connection.setblocking(False)
    selector.register(connection, selectors.EVENT_READ | selectors.EVENT_WRITE, number)
    with suppress(BlockingIOError):
        os.write(told, b".")


if __name__ == "__main__":
    main()
