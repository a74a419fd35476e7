"""The daemon's memory of indexes and configuration does not grow with the number of times they are read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests import rootfs

ROOT = Path(__file__).resolve().parent.parent.parent
RELOADS = 6

CHILD = """
import gc, sys
from kmodd.daemon.policy_state import PolicyState
from kmodd.host.journal import Journal
from kmodd.host.tree import Tree
from kmodd.daemon.reporter import Reporter
from kmodd.daemon.system_state import SystemState

def resident() -> int:
    lines = open("/proc/self/status").read().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "VmSwap:")))

gc.disable()  # as the daemon does until READY
tree, report = Tree(sys.argv[1]), Reporter(Journal())
view = SystemState(tree, report, PolicyState(sys.argv[1], report))
print(resident())
for _ in range(int(sys.argv[2])):
    view.reload()
    assert view.snapshot.catalog.aliases("pci:v00000007d00000001sv0sd0bc00sc00i00")
    print(resident())
"""


def test_indexes_that_are_read_again_take_the_memory_of_those_before(tmp_path: Path) -> None:
    """A reload frees what it replaces: with both at once, and with glibc's growing threshold, the half stays behind."""
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
