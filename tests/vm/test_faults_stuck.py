"""A module that hangs in its init is never killed, is named while it hangs, and delays no other load.

Also here: inits that ask the kernel for other modules, and asynchronous work that delays every load in the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.vm.devices import DEVICES, Device
from tests.vm.faults import (
    LANES,
    appear,
    given_to_kernel,
    let_go,
    prepare_faults,
    record_of,
    restart,
    results,
    set_lanes,
    settle_kmodd,
    state,
    status,
    until,
    until_state,
    vanish,
)
from tests.vm.image import Image
from tests.vm.journal import text
from tests.vm.machine import Machine
from tests.vm.payload import Payload

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

_SECONDS = 300  # of kt_slow's init, unless it is let go
_STUCK_AFTER = 4
_WATCHDOG = 20  # seconds; an init is longer: a process that waits for it is killed


@pytest.fixture(scope="module", params=LANES, ids="lanes={}".format)
def guest(
    image: Image, boot: Callable[..., AbstractContextManager[Machine]], request: pytest.FixtureRequest
) -> Iterator[Machine]:
    def prepare(payload: Payload) -> None:
        set_lanes(payload, request.param)
        prepare_faults(payload, image, conf=f"StuckAfterSec={_STUCK_AFTER}\n")
        payload.write("/etc/modprobe.d/slow.conf", f"options kt_slow seconds={_SECONDS}\n")
        payload.write("/etc/systemd/system/kmodd.service.d/watchdog.conf", f"[Service]\nWatchdogSec={_WATCHDOG}s\n")
        payload.kernel_helper = True  # kmodd puts its own into the place of a modprobe that is not there

    with boot("the guest with hanging modules", prepare=prepare) as machine:
        assert status(machine)["lanes_auto"] == (request.param == "auto")
        yield machine


def _stuck_after(machine: Machine, seconds: int) -> None:
    machine.check(f"printf '[Kmodd]\\nStuckAfterSec={seconds}\\n' >/etc/kmodd/kmodd.conf && kmodd reload")


@pytest.fixture
def patient(guest: Machine) -> Iterator[Machine]:
    """The guest, where what takes long on a slow host is not stuck."""
    _stuck_after(guest, 60)
    yield guest
    _stuck_after(guest, _STUCK_AFTER)


def _gone(machine: Machine, *names: str) -> None:
    """Take the devices of these modules away and the modules too."""
    settle_kmodd(machine)
    for name in names:
        vanish(machine, name)
        machine.run(f"busybox rmmod {name}")
    settle_kmodd(machine)


def _serve(machine: Machine, device: Device) -> None:
    """Plug a device; it is served while kt_slow is still starting."""
    assert device.module not in machine.modules()
    machine.plug(device)
    until_state(machine, device.module, "Live")
    assert state(machine, "kt_slow") == "Loading", "it came when the slow module was through, not meanwhile"


def test_a_hanging_init_is_named_with_its_stack_and_others_are_served(guest: Machine) -> None:
    mark = guest.journal.mark()
    appear(guest, "kt_slow")
    until_state(guest, "kt_slow", "Loading")
    record = record_of(guest, "kt_slow", "stuck", mark)
    assert text(record, "KMODD_DEVPATH").startswith("/devices/platform/kt_slow.")
    assert "kt_slow_init" in text(record, "KMODD_STACK"), record
    _serve(guest, DEVICES["virtio-rng-pci"])
    now = status(guest)
    assert "kt_slow" in str(now["stuck"])
    assert "kt_slow" in str(now["lanes"]), now["lanes"]
    guest.check(f"busybox sleep {_WATCHDOG}")
    assert guest.check("systemctl show -P NRestarts kmodd").strip() == "0"
    let_go(guest)
    record_of(guest, "kt_slow", "loaded", mark)
    assert results(guest, "kt_slow", mark) == ["stuck", "loaded"]
    until(lambda: "kt_slow" not in str(status(guest)["stuck"]), 60.0, "it is no longer called stuck")
    _gone(guest, "kt_slow")


def test_a_new_daemon_adopts_what_hangs(guest: Machine) -> None:
    mark, before = guest.journal.mark(), given_to_kernel(guest, "kt_slow")
    appear(guest, "kt_slow")
    until_state(guest, "kt_slow", "Loading")
    restart(guest)
    assert state(guest, "kt_slow") == "Loading", "the test was too slow to show anything"
    record_of(guest, "kt_slow", "stuck", mark)
    _serve(guest, DEVICES["rtl8139"])
    let_go(guest)
    record_of(guest, "kt_slow", "loaded", mark)
    assert state(guest, "kt_slow") == "Live"
    assert given_to_kernel(guest, "kt_slow") == before + 1
    _gone(guest, "kt_slow")


def test_what_needs_it_is_not_given_to_the_kernel_too_early(guest: Machine) -> None:
    mark = guest.journal.mark()
    appear(guest, "kt_slow")
    until_state(guest, "kt_slow", "Loading")
    appear(guest, "kt_behind")
    record_of(guest, "kt_behind", "not_attempted", mark)  # told while kt_slow is stuck, then loaded by itself
    assert "kt_behind" not in str(status(guest)["lanes"]), "the kernel had it while it waited"
    assert state(guest, "kt_slow") == "Loading"
    let_go(guest)
    record_of(guest, "kt_behind", "loaded", mark)
    assert state(guest, "kt_slow") == "Live"
    assert results(guest, "kt_behind", mark) == ["not_attempted", "loaded"]
    _gone(guest, "kt_behind", "kt_slow")


def test_ten_seconds_are_not_a_fault(guest: Machine) -> None:
    """And a watchdog shorter than the inits before it has not bitten."""
    mark = guest.journal.mark()
    appear(guest, "kt_ten")
    record_of(guest, "kt_ten", "loaded", mark)
    assert guest.check("systemctl show -P NRestarts kmodd").strip() == "0"
    assert guest.check("systemctl show -P WatchdogUSec kmodd").strip() == f"{_WATCHDOG}s"
    _gone(guest, "kt_ten")


def test_asynchronous_work_is_named_as_what_the_others_wait_for(guest: Machine) -> None:
    mark = guest.journal.mark()
    appear(guest, "kt_async")
    until_state(guest, "kt_async", "Live")  # its init is over; its finit_module is not
    appear(guest, "kt_plain")
    stuck = record_of(guest, "kt_async", "stuck", mark)
    assert "the kernel waits for asynchronous work of a driver" in text(stuck, "MESSAGE"), stuck
    behind = record_of(guest, "kt_plain", "stuck", mark)
    assert "kt_async" in text(behind, "MESSAGE"), behind
    let_go(guest, "kt_async")
    record_of(guest, "kt_async", "loaded", mark)
    record_of(guest, "kt_plain", "loaded", mark)
    _gone(guest, "kt_async", "kt_plain")


@pytest.mark.long
def test_a_chain_of_requests_out_of_inits_goes_through(patient: Machine) -> None:
    """a's init waits for b, whose init waits for c, which needs d: with one lane for all it would wait for ever."""
    assert patient.check("cat /proc/sys/kernel/modprobe").strip().endswith("kmodd-request")
    assert patient.run("ls /sbin/modprobe").status != 0
    mark = patient.journal.mark()
    appear(patient, "kt_chain_a")
    for name in ("kt_chain_d", "kt_chain_c", "kt_chain_b", "kt_chain_a"):
        until_state(patient, name, "Live")
    record_of(patient, "kt_chain_a", "loaded", mark)
    said = patient.check("dmesg | grep request_module")
    assert "kt_chain_a: request_module gives 0" in said
    assert "kt_chain_b: request_module gives 0" in said
    _gone(patient, "kt_chain_a", "kt_chain_b", "kt_chain_c", "kt_chain_d")


@pytest.mark.long
def test_a_scan_that_asks_for_a_driver_gets_it(patient: Machine) -> None:
    """A bus of PHYs: the kernel asks for `mdio:…` while it scans, inside of the init of the bus's driver."""
    mark = patient.journal.mark()
    appear(patient, "kt_mdio")
    until_state(patient, "realtek", "Live")
    record_of(patient, "kt_mdio", "loaded", mark)
    driver = patient.check("readlink /sys/bus/mdio_bus/devices/kt_mdio-0:00/driver")
    assert "Realtek" in driver or "RTL8211E" in driver, driver
    _gone(patient, "kt_mdio")


@pytest.mark.long
def test_an_init_that_asks_for_itself_is_answered(patient: Machine) -> None:
    mark = patient.journal.mark()
    appear(patient, "kt_self")
    record_of(patient, "kt_self", "loaded", mark)
    assert given_to_kernel(patient, "kt_self") == 1
    _gone(patient, "kt_self")
