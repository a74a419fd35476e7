"""With `Lanes=auto` an init that sleeps is overtaken, under kmodd's own units; one that computes is not.

The daemon has to see for it what its loaders do, behind ProtectProc=invisible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.vm.faults import (
    MODPROBE,
    appear,
    let_go,
    prepare_faults,
    record_of,
    results,
    settle_kmodd,
    state,
    status,
    until,
    until_state,
    vanish,
)
from tests.vm.image import Image
from tests.vm.machine import Machine
from tests.vm.payload import Payload
from tests.vm.using import CONF

# Long: a guest of its own is more than the time budget of CI has.
pytestmark = [pytest.mark.vm, pytest.mark.long, pytest.mark.timeout(900)]

_SETTINGS = "StuckAfterSec=300\n"
_LONG_ENOUGH = 3
"""Seconds in which a lane would have opened: some hundred looks."""


@pytest.fixture(scope="module")
def machine(image: Image, boot: Callable[..., AbstractContextManager[Machine]]) -> Iterator[Machine]:
    def prepare(payload: Payload) -> None:
        prepare_faults(payload, image, conf=_SETTINGS)
        payload.write("/etc/modprobe.d/slow.conf", "options kt_slow seconds=300\noptions kt_busy seconds=300\n")
        payload.kernel_helper = True  # inits ask for modules

    with boot("the guest with lanes", prepare=prepare) as machine:
        yield machine


@pytest.fixture
def guest(machine: Machine) -> Iterator[Machine]:
    """The guest; what is still starting is let go, and all modules of ours are taken away."""
    yield machine
    machine.run("for m in kt_slow kt_busy; do echo 0 >/sys/module/$m/parameters/seconds; done 2>/dev/null")
    settle_kmodd(machine)
    for name in ("kt_slow", "kt_busy", "kt_plain", "kt_late", "kt_chain_a", "kt_chain_b", "kt_chain_c", "kt_chain_d"):
        vanish(machine, name)
        machine.run(f"busybox rmmod {name}")
    settle_kmodd(machine)


def _starting(machine: Machine, lanes: str, *modules: str) -> int:
    """Set `Lanes=`, have the inits of modules begin one after the other, and return the mark of the journal before."""
    machine.check(f"printf '[Kmodd]\\n%s\\nLanes={lanes}\\n' '{_SETTINGS}' >{CONF} && kmodd reload")
    assert status(machine)["lanes_auto"] == (lanes == "auto")
    mark = machine.journal.mark()
    for module in modules:
        appear(machine, module)
        until_state(machine, module, "Loading")
    return mark


def _waits(machine: Machine, module: str, behind: str) -> None:
    """Have a device appear whose module is not loaded while `behind` is starting."""
    appear(machine, module)
    until(lambda: status(machine)["waiting"], 60.0, f"{module} waits")
    machine.check(f"busybox sleep {_LONG_ENOUGH}")
    assert state(machine, module) == "", f"{module} was given to the kernel"
    assert state(machine, behind) == "Loading", "the test was too slow to show anything"


def _at_work(machine: Machine) -> dict[str, int]:
    """Module → process number of its loader."""
    return {lane["module"]: lane["pid"] for lane in status(machine)["lanes"] if "module" in lane}


def test_an_init_that_sleeps_is_overtaken(guest: Machine) -> None:
    assert guest.check("systemctl show -P ProtectProc kmodd").strip() == "invisible"
    mark = _starting(guest, "auto", "kt_slow")
    loader = _at_work(guest)["kt_slow"]
    assert "kmodd-loader" in guest.check(f"cat /proc/{loader}/cgroup")
    appear(guest, "kt_plain")
    until_state(guest, "kt_plain", "Live")
    assert state(guest, "kt_slow") == "Loading", "the test was too slow to show anything"
    assert _at_work(guest) == {"kt_slow": loader}
    let_go(guest)
    record_of(guest, "kt_slow", "loaded", mark)
    assert results(guest, "kt_slow", mark) == ["loaded"], "it was not waited for any more"


@pytest.mark.parametrize(("lanes", "module"), [("1", "kt_slow"), ("auto", "kt_busy")])
def test_with_one_lane_it_is_not_nor_is_an_init_that_computes(guest: Machine, lanes: str, module: str) -> None:
    mark = _starting(guest, lanes, module)
    _waits(guest, "kt_plain", behind=module)
    let_go(guest, module)
    record_of(guest, "kt_plain", "loaded", mark)


def test_one_that_computes_keeps_the_next_lane_closed(guest: Machine) -> None:
    """The second lane opens, as the first one's init sleeps; the third does not, as the second one's computes."""
    mark = _starting(guest, "auto", "kt_slow", "kt_busy")
    _waits(guest, "kt_plain", behind="kt_busy")
    guest.check(f"{MODPROBE} kt_late")  # who asks for a module waits for no lane
    assert state(guest, "kt_busy") == "Loading"
    let_go(guest, "kt_busy")
    record_of(guest, "kt_plain", "loaded", mark)
    assert state(guest, "kt_slow") == "Loading"


def test_requests_out_of_an_init_go_through_beside_an_open_lane(guest: Machine) -> None:
    """a's init waits for b, whose init waits for c, which needs d; all in lanes and loaders beside that of kt_slow."""
    mark = _starting(guest, "auto", "kt_slow")
    appear(guest, "kt_chain_a")
    record_of(guest, "kt_chain_a", "loaded", mark)
    assert [state(guest, f"kt_chain_{each}") for each in "abcd"] == ["Live"] * 4
    assert state(guest, "kt_slow") == "Loading", "the test was too slow to show anything"


def test_an_oops_beside_an_open_lane_is_that_modules_alone(guest: Machine) -> None:
    """The last test: kt_oops remains in the kernel."""
    mark = _starting(guest, "auto", "kt_slow")
    appear(guest, "kt_oops")
    appear(guest, "kt_plain")
    record_of(guest, "kt_oops", "crashed", mark)
    record_of(guest, "kt_plain", "loaded", mark)
    assert state(guest, "kt_slow") == "Loading", "the test was too slow to show anything"
    let_go(guest)
    record_of(guest, "kt_slow", "loaded", mark)
