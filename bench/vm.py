"""`make bench-vm`: benchmark of kmodd against udevd and kmod in an emulated machine (tcg, 2 processors).

    python3 -m bench.vm [--rounds N] [PART…]

Prints a table, and writes its rows to bench/results.json and bench/README.md, beside those of other parts, suites
(SUITE=…) and days. Rows of a part during which other processes of the host worked are printed, and not written.
Only ratios are meaningful: emulation is slow, above all at starting programs. If a part fails, this is reported, the
other parts run, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Final

from bench import vm_coldplug, vm_flood, vm_hotplug, vm_request, vm_sleeping
from bench.other_work import BUSY, OtherWork
from bench.results import save_vm
from bench.rows import Row, table
from tests.vm import VmError, say
from tests.vm.image import Image, ensure_image

Part = Callable[[Image, int], list[Row]]

PARTS: Final[dict[str, tuple[Part, int]]] = {
    "beside": (vm_coldplug.measure_beside, 7),
    "coldplug": (vm_coldplug.measure, 7),
    "sleeping": (partial(vm_sleeping.measure, cpus=2), 7),
    "sleeping-4": (partial(vm_sleeping.measure, cpus=4), 7),
    "sleeping-8": (partial(vm_sleeping.measure, cpus=8), 7),
    "lanes": (vm_sleeping.measure_memory, 7),
    "hotplug": (vm_hotplug.measure, 7),
    "flood": (vm_flood.measure, 7),
    "memory": (vm_flood.measure_growth, 1),
    "request": (vm_request.measure, 7),
    "growth": (vm_coldplug.measure_growth, 2),
}
"""Name → function that measures, default number of rounds."""


def main() -> int:
    """Measure, print, and save the results; return the exit status."""
    parser = argparse.ArgumentParser(
        "make bench-vm ARGS=…", description="Benchmark kmodd against udevd and kmod in a VM."
    )
    parser.add_argument("--rounds", type=int, help="number of rounds (default: that of the part)")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)} (default: all)")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; expected {', '.join(PARTS)}")
    image = ensure_image()
    rows: list[Row] = []
    failed: list[str] = []
    for name in options.parts or PARTS:
        part, rounds = PARTS[name]
        begin, others = time.monotonic(), OtherWork()
        try:
            found = part(image, options.rounds or rounds)
        except (VmError, OSError, ValueError) as error:
            traceback.print_exc()
            failed.append(f"{name}: {str(error).splitlines()[0]}")
            continue
        rows += found
        if (share := others.share()) > BUSY:
            failed.append(f"{name}: not written: other processes used {share:.0%} of the host's processors")
        else:
            save_vm(image.suite, image.release, found)
        say(f"{name} took {time.monotonic() - begin:.0f} s")
    print(table(rows))
    for words in failed:
        print(f"FAILED {words}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
