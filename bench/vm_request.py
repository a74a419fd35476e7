"""Benchmark of kernel requests: duration of a system call, with kmodd's helper against the stock modprobe.

One guest, the helpers in turn (bench/guest/request.py). udevd does not run.
"""

from __future__ import annotations

import json
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


def measure(image: Image, _rounds: int) -> list[Row]:
    """Return a row per case, or none if this kmodd has no helper."""
    with guest(image, "kernel requests", devices=()) as machine:
        vm_guest.stop_witness(machine)
        if machine.run(f"test -x {HELPER}").status != 0:
            say(f"skipped: kernel requests: `make install` places no {HELPER}")
            return []
        before = machine.check("busybox cat /proc/sys/kernel/modprobe").strip()
        vm_guest.start(machine, "kmodd")
        after = machine.check("busybox cat /proc/sys/kernel/modprobe").strip()
        say(f"kernel.modprobe was {before}, and is {after} with kmodd")
        text = machine.check(f"/usr/bin/python3 -IS {PROBES}/request.py {CALLS} {HELPER} {STOCK}", 600)
    found = json.loads(text.splitlines()[-1])
    return [
        row(f"kernel request, {words}", [(ours * 1e3, peer * 1e3) for ours, peer in found[case]], "ms; peer: modprobe")
        for case, words in _CASES.items()
    ]
