"""`make bench-vm`: kmodd and udevd with kmod, side by side on a real kernel, emulated (tcg, 2 processors).

    python3 -m bench.vm [--rounds N] [PART…]

Prints a table, and puts its rows into bench/results.json (beside those of `make bench`) and README.md. Ratios count,
milliseconds do not: emulation is slow, and slowest at starting programs. A part that fails is named, the others go on,
and the exit status is 1.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from typing import Final

from bench import vm_coldplug, vm_flood, vm_hotplug, vm_request
from bench.results import save_vm
from bench.rows import Row, table
from tests.vm import VmError, say
from tests.vm.image import Image, ensure_image

Part = Callable[[Image, int], list[Row]]

PARTS: Final[dict[str, tuple[Part, int]]] = {
    "coldplug": (vm_coldplug.measure, 5),
    "beside": (vm_coldplug.measure_beside, 3),
    "slow": (vm_coldplug.measure_slow, 3),
    "hotplug": (vm_hotplug.measure, 10),
    "flood": (vm_flood.measure, 3),
    "memory": (vm_flood.measure_growth, 1),
    "request": (vm_request.measure, 1),
    "growth": (vm_coldplug.measure_growth, 2),
}
"""Name → what measures it, and how many rounds are taken unless told."""


def main() -> int:
    """Measure, print, write; the answer is the exit status."""
    parser = argparse.ArgumentParser("make bench-vm ARGS=…", description="kmodd beside udevd and kmod in a VM.")
    parser.add_argument("--rounds", type=int, help="instead of each part's own number")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all if none is named")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    image = ensure_image()
    rows: list[Row] = []
    failed: list[str] = []
    for name in options.parts or PARTS:
        part, rounds = PARTS[name]
        begin = time.monotonic()
        try:
            found = part(image, options.rounds or rounds)
        except (VmError, OSError, ValueError) as error:
            traceback.print_exc()
            failed.append(f"{name}: {str(error).splitlines()[0]}")
            continue
        rows += found
        save_vm({"kernel": image.release, "accel": "tcg"}, found)
        say(f"{name} took {time.monotonic() - begin:.0f} s")
    print(table(rows))
    for words in failed:
        print(f"FAILED {words}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
