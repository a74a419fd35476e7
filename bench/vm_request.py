"""Benchmark of kernel requests: duration of a system call, with kmodd's helper against the stock modprobe.

In each of several guests the helpers in turn (bench/guest/request.py). udevd does not run.
"""

from __future__ import annotations

import json
import statistics
from typing import Final

from bench import vm_guest
from bench.rows import Row, row
from bench.vm_guest import PROBES, guest
from tests.vm import say
from tests.vm.image import Image

HELPER: Final = "/usr/lib/kmodd/kmodd-request"
STOCK: Final = "/sbin/modprobe"
CALLS: Final = 25

_CASES: Final = {"unknown": "of an unknown name", "live": "of an unknown name, then of a live module", "load": "a load"}


def measure(image: Image, rounds: int) -> list[Row]:
    """Return a row per case: the medians of each guest."""
    pairs: dict[str, list[tuple[float, float]]] = {case: [] for case in _CASES}
    for _ in range(rounds):
        for case, found in _once(image).items():
            ours, peer = (statistics.median(side) * 1e3 for side in zip(*found, strict=True))
            pairs[case].append((ours, peer))
    return [row(f"kernel request, {words}", pairs[case], "ms; peer: modprobe") for case, words in _CASES.items()]


def _once(image: Image) -> dict[str, list[tuple[float, float]]]:
    """Return the seconds of each call, by case, with kmodd's helper and with modprobe."""
    with guest(image, "kernel requests", devices=()) as machine:
        vm_guest.stop_witness(machine)
        before = machine.check("busybox cat /proc/sys/kernel/modprobe").strip()
        vm_guest.start(machine, "kmodd")
        after = machine.check("busybox cat /proc/sys/kernel/modprobe").strip()
        say(f"kernel.modprobe was {before}, and is {after} with kmodd")
        text = machine.check(f"/usr/bin/python3 -IS {PROBES}/request.py {CALLS} {HELPER} {STOCK}", 600)
    found: dict[str, list[tuple[float, float]]] = json.loads(text.splitlines()[-1])
    return found
