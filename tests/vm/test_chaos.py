"""Devices come and go while all around the daemon fails: afterwards the machine is as modprobe would have left it.

`KMODD_CHAOS_SEC` seconds (default 60), of which the daemon lives undisturbed through the first half, so that its
memory can be compared. The seed stands in the run's head (KMODD_SEED repeats it). The table of faults is written to
`$KMODD_CACHE/chaos.json`.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests import suites, trees
from tests.vm import say
from tests.vm.chaos import TYPES, Chaos
from tests.vm.conftest import LOG_LEVEL
from tests.vm.devices import DEVICES
from tests.vm.faults import appear, prepare_faults, settle_kmodd, status, until, without_udevd
from tests.vm.fixture_modules import fixture_modules, indexes
from tests.vm.image import Image
from tests.vm.machine import Machine
from tests.vm.payload import Payload

_SECONDS = float(os.environ.get("KMODD_CHAOS_SEC") or 60)

pytestmark = [pytest.mark.vm, pytest.mark.timeout(int(_SECONDS) + 900)]

_MEMORY = 0.10
"""Growth of the daemon's resident memory that is allowed, as a share."""
_QUEUE = 4096
"""KiB that records take at most while journald does not read (kmodd/host/journal.py). malloc keeps them afterwards."""


def _memory(machine: Machine) -> tuple[str, int]:
    """The daemon's process and its resident memory in KiB."""
    pid = machine.check("systemctl show -P MainPID kmodd").strip()
    return pid, int(machine.check(f"busybox grep VmRSS /proc/{pid}/status").split()[1])


def _settled(machine: Machine) -> None:
    until(lambda: machine.run("kmodd settle", 90).status == 0, 120.0, "kmodd has answered everything")


def _wanted_by_modprobe(image: Image, machine: Machine, scratch: Path) -> set[str]:
    """What the real modprobe would load for every alias that /sys of the guest has now, out of the same tree."""
    find = "find /sys/devices -name modalias -size +0 -exec busybox cat {} + | busybox sort -u"
    aliases = machine.check(find, 120).split()
    assert len(aliases) > 30, aliases
    conf, tree = scratch / "conf", scratch / "lib/modules" / image.release
    conf.mkdir(parents=True)
    for path in machine.check("find /etc/modprobe.d /usr/lib/modprobe.d -name '*.conf' 2>/dev/null || true").split():
        (conf / Path(path).name).write_text(machine.check(f"cat {path}"))
    tree.parent.mkdir(parents=True)
    tree.symlink_to(_whole_tree(image, scratch))
    wanted: set[str] = set()
    for alias in aliases:
        done = subprocess.run(
            ["/sbin/modprobe", "-d", str(scratch), "-C", str(conf), "-S", image.release, "-b", "-D", "-q", alias],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        files = re.findall(r"^insmod (\S+)", done.stdout, re.MULTILINE)
        wanted |= {Path(file).name.split(".")[0].replace("-", "_") for file in files}
    return wanted


def _whole_tree(image: Image, scratch: Path) -> Path:
    """The kernel's tree with our modules and the guest's indexes, made of links."""
    source = trees.module_dir(trees.suite_tree(image.suite))
    tree = scratch / "tree"
    (tree / "updates").mkdir(parents=True)
    (tree / "kernel").symlink_to(source / "kernel")
    for index in indexes(image).iterdir():
        (tree / index.name).symlink_to(index)
    for name, path in fixture_modules(image).items():
        (tree / "updates" / f"{name}.ko").symlink_to(path)
    return tree


def _refused(machine: Machine, modules: set[str]) -> set[str]:
    """Modules that the kernel refuses from busybox too."""
    tree = f"/usr/lib/modules/{machine.image.release}"
    said = {
        name: machine.run(f"busybox insmod $(find {tree} -name {name.replace('_', '[-_]')}.ko*)", 60)
        for name in modules
    }
    return {name for name, ran in said.items() if ran.status != 0}


def test_chaos_leaves_the_machine_as_modprobe_would(
    image: Image,
    boot: Callable[..., AbstractContextManager[Machine]],
    rng: random.Random,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    assert len(TYPES) >= 12

    def prepare(payload: Payload) -> None:
        prepare_faults(payload, image)
        without_udevd(payload)
        payload.write(LOG_LEVEL, "")  # memory is that of the daemon as it is without settings

    with boot("the guest of chaos", prepare=prepare) as machine:
        machine.plug(DEVICES["qemu-xhci"])  # never unplugged: QEMU does not let go of it
        _warm_up(machine)
        pid, before = _memory(machine)
        chaos = Chaos(machine, rng)
        _run(chaos, _SECONDS / 2, harsh=False)
        chaos.mend()
        _settled(machine)
        assert _memory(machine)[0] == pid, "it did not live through the first half"
        after = _memory(machine)[1]
        allowed = before * (1 + _MEMORY) + (_QUEUE if chaos.counts["journald_stopped"] else 0)
        _run(chaos, _SECONDS / 2, harsh=True)
        chaos.mend()
        _settled(machine)

        table = {
            "seed": request.config.getoption("hypothesis_seed"),
            "seconds": _SECONDS,
            "injected": dict(sorted(chaos.counts.items())),
            "memory KiB": [before, after],
            "overruns": status(machine)["overruns"],
            **_compare(image, machine, tmp_path / "modprobe"),
        }
        (suites.cache() / "chaos.json").write_text(json.dumps(table, indent=1) + "\n")
        say(json.dumps(table))
        assert [table["lost"], table["loaded twice"], table["loaded by others"]] == [[], [], []], table
        assert after <= allowed, table
        assert chaos.counts["daemon_killed"] > 0, "the run was too short to show anything"

        # control: a module without a loader is found missing
        machine.check("systemctl stop kmodd")
        machine.run("busybox rmmod kt_plain")
        appear(machine, "kt_plain")
        assert "kt_plain" in _compare(image, machine, tmp_path / "control")["lost"]


def _compare(image: Image, machine: Machine, scratch: Path) -> dict[str, Any]:
    """What the kernel holds, beside what modprobe would load for the devices that are there, and who loaded it."""
    live = {name for name, rest in machine.modules().items() if "Live" in rest.split()}
    loads = machine.module_loads()
    times = Counter(load.module for load in loads)
    wanted = _wanted_by_modprobe(image, machine, scratch)
    others = {load.module for load in loads if not load.in_initrd and load.pid != 1 and load.comm != "kmodd-loader"}
    return {
        "live": len(live),
        "wanted": len(wanted),
        "lost": sorted(wanted - live - _refused(machine, wanted - live)),
        "loaded twice": sorted(name for name, count in times.items() if name in live and count > 1),
        "loaded by others": sorted(others),
    }


def _warm_up(machine: Machine) -> None:
    """Everything that is read at first use is read, the indexes twice, as a reload holds two for a moment."""
    settle_kmodd(machine)
    machine.check("systemctl reload kmodd", 60)
    machine.check("kmodd status; kmodd explain loop", 60)
    machine.check("for d in /sys/bus/*/devices/*/uevent; do echo add >$d; done 2>/dev/null; true", 60)
    settle_kmodd(machine)


def _run(chaos: Chaos, seconds: float, *, harsh: bool) -> None:
    """For so long; and, if harsh, until the daemon was killed, as a few draws need not do it."""
    until_then = time.monotonic() + seconds
    while time.monotonic() < until_then or (harsh and not chaos.counts["daemon_killed"]):
        chaos.act(harsh=harsh)
