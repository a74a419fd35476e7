"""Benchmark of the commonest call, `modprobe NAME` of a module that is there, against kmod's.

    python3 -m bench.modprobe [--tree DIR] [--rounds N]

kmodd's helper, compiled as for the package, asks a daemon's engine in a process of its own; kmod's and kmodd's tool
look into the same tree by themselves. The module is built into the kernel: no answer depends on this machine's kernel.
Rounds alternate; wall time.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from bench.rows import Row, row, table
from bench.start import ROOT, milliseconds

_INNER = 20
"""Calls whose mean is one value: a single one takes less than the clock and the scheduler vary."""


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
    """Return two rows: the helper and the tool, each against kmod's program; none without it, or not as root.

    tree: a root returned by `tests.trees.debian_tree`.
    """
    kmod = shutil.which("modprobe.kmod", path="/usr/sbin") or shutil.which("modprobe", path="/usr/sbin:/sbin")
    if not kmod or os.geteuid() != 0:
        return []
    (release,) = (tree / "lib" / "modules").iterdir()
    name = Path((release / "modules.builtin").read_text().split()[0]).name.removesuffix(".ko")
    arguments = ["-d", str(tree), "-S", release.name, name]
    with tempfile.TemporaryDirectory() as folder:
        prefix, helper = Path(folder, "usr"), Path(folder, "modprobe")
        subprocess.run(["make", "install", f"PREFIX={prefix}"], cwd=ROOT, check=True, capture_output=True)
        _build(helper, f"{folder}/request")
        daemon = _serve(tree, release.name, f"{folder}/request")
        try:
            sides: dict[str, list[float]] = {"front": [], "tool": [], "kmod": []}
            for turn in range(rounds + 2):
                values = (
                    _mean([str(helper), name]),
                    _mean([str(prefix / "lib/kmodd/bin/modprobe"), *arguments], 1),
                    _mean([kmod, *arguments]),
                )
                for side, value in zip(sides.values(), values, strict=True):
                    if turn > 1:  # the first rounds fill the page cache
                        side.append(value)
        finally:
            os.kill(daemon, signal.SIGKILL)
            os.waitpid(daemon, 0)
    return [
        row(f"modprobe NAME, {words}", list(zip(sides[side], sides["kmod"], strict=True)), "ms; peer: kmod's modprobe")
        for words, side in (("by the helper", "front"), ("by the tool", "tool"))
    ]


def _mean(command: list[str], calls: int = _INNER) -> float:
    """Run a command several times and return the mean of its wall time in ms."""
    return sum(milliseconds(command) for _ in range(calls)) / calls


def _build(program: Path, socket: str) -> None:
    """Compile the helper with the Makefile's flags.

    This process stands for PID 1, which may be out of reach; without the daemon the helper fails.
    """
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    lines = re.findall(r"^(?:HELPER_FLAGS|BARE) = (.*)$", makefile, re.MULTILINE)
    own = [f'-DSOCKET="{socket}"', f'-DINIT="/proc/{os.getpid()}"', '-DMODPROBES="/nowhere"', "-DACCEPT_LIMIT=60"]
    source = str(ROOT / "helper" / "kmodd-request.c")
    subprocess.run(["gcc", *" ".join(lines).split(), *own, source, "-o", str(program)], check=True)


def _serve(tree: Path, release: str, path: str) -> int:
    """Answer the helper in a child process, with the daemon's own parts; return its number."""
    from kmodd.daemon.control_handler import Actions, ControlHandler
    from kmodd.engine.engine import Engine
    from kmodd.engine.events import Advance, Event, Finish, PolicyMarks, Started, TurnAway
    from kmodd.host.helper_socket import RequestSocket
    from kmodd.host.machine import HostMachine
    from kmodd.host.tree import Tree
    from kmodd.host.varlink_server import ControlSocket
    from kmodd.state.quarantine import Quarantine

    ready, told = os.pipe()
    if child := os.fork():
        os.close(told)
        os.read(ready, 1)
        return child
    os.setpriority(os.PRIO_PROCESS, 0, -10)  # as kmodd.service
    the_tree = Tree(module_dir=str(tree), release=release)
    engine = Engine(HostMachine(the_tree), PolicyMarks(), Quarantine())

    def handle(event: Event) -> None:
        for command in engine.handle(event, time.monotonic()):
            match command:
                case Finish(job):
                    handler.finished(job)
                case TurnAway(request, why):
                    handler.turned_away(request, why)

    handler = ControlHandler(engine, ControlSocket(f"{path}.control"), Actions(handle, tuple, dict))
    requests = RequestSocket(path)
    handler.serve(requests, the_tree)
    handle(Started())
    os.write(told, b"1")
    while True:
        select.select([requests], [], [])
        requests.receive()
        while handler.handle_call():
            while engine.can_advance(time.monotonic()):
                handle(Advance())


if __name__ == "__main__":
    main()
