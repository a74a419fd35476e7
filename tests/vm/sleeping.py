"""A machine whose drivers sleep in their probes, as real ones do: `fixtures/modules/sleeping/machine.tsv`.

Each line is a driver, a module of our own; kt_bus makes its device.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

from tests.vm.fixture_modules import SOURCES, compiled, fixture_modules, indexes_with
from tests.vm.image import Image
from tests.vm.machine import Machine
from tests.vm.payload import Payload, copy_into

_FOLDER: Final = SOURCES.with_name("sleeping")
_BUS: Final = "/usr/lib/sleeping/kt_bus.ko"

Kind = Literal["sleep", "busy"]


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver of the machine: its module's name, what its probe does and for how long, and who says so."""

    module: str
    milliseconds: int
    kind: Kind
    source: str


@functools.cache
def drivers() -> tuple[Driver, ...]:
    """The drivers, in the order of their devices. Raises ValueError for a line that is none."""
    found = []
    for line in (_FOLDER / "machine.tsv").read_text().splitlines():
        if line.startswith("#"):
            continue
        name, milliseconds, kind, source = line.split("\t")
        if kind not in get_args(Kind):
            raise ValueError(f"machine.tsv: {name}: {kind}: not a kind")
        found.append(Driver(f"kt_{name}", int(milliseconds), cast("Kind", kind), source))
    return tuple(found)


def prepare_sleeping(payload: Payload, image: Image) -> None:
    """Put the drivers into a guest, with indexes of depmod that name them, and kt_bus where no index does."""
    source = (_FOLDER / "driver.c").read_bytes()
    flags = "".join(
        f"CFLAGS_{driver.module}.o := -DKT_MS={driver.milliseconds}{' -DKT_BUSY' * (driver.kind == 'busy')}\n"
        for driver in drivers()
    )
    folder = compiled(image, {driver.module: source for driver in drivers()}, flags)
    tree = f"/usr/lib/modules/{image.release}"
    modules = [folder / f"{driver.module}.ko" for driver in drivers()]
    for module in modules:
        payload.write(f"{tree}/updates/{module.name}", module.read_bytes())
    copy_into(payload, indexes_with(image, modules), tree)
    payload.write(_BUS, fixture_modules(image)["kt_bus"].read_bytes())


def add_devices(machine: Machine) -> None:
    """Make a device for each driver, in the order of the table."""
    names = " ".join(driver.module for driver in drivers())
    machine.check(
        f"busybox insmod {_BUS} && for n in {names}; do echo $n 1 >/sys/module/kt_bus/parameters/add || exit 1; done"
    )
