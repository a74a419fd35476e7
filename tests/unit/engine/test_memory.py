"""The memory that indexes and configuration take does not grow with the number of times they are read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests import rootfs

ROOT = Path(__file__).resolve().parents[3]
RELOADS = 6

CHILD = """
import gc, sys
from kmodd.engine.engine import Engine
from kmodd.engine.events import PolicyMarks, ReloadRequested, Started
from kmodd.host.machine import HostMachine
from kmodd.host.tree import Tree
from kmodd.state.quarantine import Quarantine

def resident() -> int:
    lines = open("/proc/self/status").read().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "VmSwap:")))

gc.disable()  # as the daemon does until READY
engine = Engine(HostMachine(Tree(sys.argv[1])), PolicyMarks(), Quarantine())
print(resident())
for number in range(int(sys.argv[2])):
    engine.handle(ReloadRequested() if number else Started(), float(number))
    assert engine.state.system.snapshot.catalog.aliases("pci:v00000007d00000001sv0sd0bc00sc00i00")
    print(resident())
"""


def test_indexes_read_again_use_the_memory_of_the_earlier_ones(tmp_path: Path) -> None:
    """A reload frees first what it replaces: with both at once, and glibc's growing threshold, half would stay."""
    root = rootfs.build("names", tmp_path / "root")
    index = root / "lib" / "modules" / rootfs.RELEASE / "modules.alias"
    with index.open("a") as file:
        for number in range(60_000):
            file.write(f"alias pci:v{number % 500:08X}d{number // 500 + 1:08X}sv*sd*bc*sc*i* loop\n")
    unit = (ROOT / "systemd" / "kmodd.service").read_text()
    env = {**os.environ, **dict(re.findall(r"^Environment=(\w+)=(\S+)$", unit, re.MULTILINE))}
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, str(root), str(RELOADS)],
        capture_output=True, text=True, check=True, cwd=ROOT, env=env,
    )  # fmt: skip
    before, first, *later = map(int, ran.stdout.split())
    assert len(later) == RELOADS - 1
    assert max(later) - first < 0.2 * (first - before), ran.stdout
