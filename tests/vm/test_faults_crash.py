"""A module that oopses takes its loader along, and nothing else: not the daemon, not another device, not the next call.

One guest for an oops in an init, then for one in a probe; the latter leaves a device's lock held for good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.vm.devices import DEVICES, Device
from tests.vm.faults import (
    LANES,
    MODPROBE,
    appear,
    given_to_kernel,
    prepare_faults,
    record_of,
    restart,
    results,
    set_lanes,
    settle_kmodd,
    state,
    status,
    trace_again,
    until,
    until_state,
    vanish,
)
from tests.vm.image import Image
from tests.vm.journal import text
from tests.vm.machine import Machine
from tests.vm.payload import Payload

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

_OOPSES = Device("pci-testdev", "kt_oopsprobe", {"driver": "pci-testdev"})


@pytest.fixture(scope="module", params=LANES, ids="lanes={}".format)
def guest(
    image: Image, boot: Callable[..., AbstractContextManager[Machine]], request: pytest.FixtureRequest
) -> Iterator[Machine]:
    def prepare(payload: Payload) -> None:
        prepare_faults(payload, image)
        set_lanes(payload, request.param)

    with boot("the guest with crashing modules", prepare=prepare) as machine:
        assert status(machine)["lanes_auto"] == (request.param == "auto")
        yield machine


def test_an_oops_in_an_init_is_recorded_and_the_next_device_is_served(guest: Machine) -> None:
    mark = guest.journal.mark()
    appear(guest, "kt_oops")
    appear(guest, "kt_plain")
    record = record_of(guest, "kt_oops", "crashed", mark)
    assert text(record, "KMODD_DEVPATH").startswith("/devices/platform/kt_oops.")
    said = text(record, "KMODD_KERNEL_LOG")
    assert "BUG:" in said or "Oops" in said, record
    record_of(guest, "kt_plain", "loaded", mark)
    assert state(guest, "kt_oops") == "Loading"
    assert guest.check("dmesg | grep -c 'Oops: '").strip() == "1"
    trace_again(guest)


def test_what_crashed_is_not_tried_again_and_who_asks_is_told_at_once(guest: Machine) -> None:
    """The kernel would let a second load of that name wait for ever."""
    mark = guest.journal.mark()
    appear(guest, "kt_oops")
    assert text(record_of(guest, "kt_oops", "crashed", mark), "MESSAGE").startswith("Crashed: kt_oops for ")
    answer = guest.run(f"{MODPROBE} kt_oops", 60)
    assert answer.status == 1, answer
    assert "Crashed: kt_oops for root " in answer.output
    assert given_to_kernel(guest, "kt_oops") == 1


def test_what_needs_it_fails_with_that_reason(guest: Machine) -> None:
    """The kernel would let it wait for 30 s and say EBUSY."""
    mark = guest.journal.mark()
    appear(guest, "kt_deep")
    record = guest.journal.wait_for(lambda each: text(each, "KMODD_MODULE") == "kt_deep", 60.0, mark)
    assert text(record, "KMODD_RESULT") in ("failed", "not_attempted")
    assert "kt_oops" in text(record, "MESSAGE"), record
    assert "crashed" in text(record, "MESSAGE"), record
    assert state(guest, "kt_deep") == ""


def test_a_new_daemon_knows_what_crashed(guest: Machine) -> None:
    mark = guest.journal.mark()
    restart(guest)
    settle_kmodd(guest)
    assert any("kt_oops" in str(each) for each in status(guest)["quarantine"])
    appear(guest, "kt_oops")
    record_of(guest, "kt_oops", "crashed", mark)
    appear(guest, "kt_deep")
    settle_kmodd(guest)
    assert "loaded" not in results(guest, "kt_deep", mark)
    assert given_to_kernel(guest, "kt_oops") == 1
    vanish(guest, "kt_oops")
    vanish(guest, "kt_deep")


def test_status_warns_of_a_kernel_that_panics_on_an_oops(guest: Machine) -> None:
    assert "panic_on_oops" not in str(status(guest)["problems"])
    guest.check("echo 1 >/proc/sys/kernel/panic_on_oops")
    try:
        assert "panic_on_oops" in str(status(guest)["problems"])
    finally:
        guest.check("echo 0 >/proc/sys/kernel/panic_on_oops")


def test_an_oops_in_a_probe_stops_nothing_but_its_device(guest: Machine) -> None:
    mark = guest.journal.mark()
    guest.plug(_OOPSES)
    record = record_of(guest, "kt_oopsprobe", "crashed", mark)
    trace_again(guest)
    device = text(record, "KMODD_DEVPATH")
    assert device.startswith("/devices/pci0000:00/")
    # The device's lock is held from here on: on Debian 12 who reads its `uevent` is lost, later who unbinds it.
    name = device.rpartition("/")[2]
    read, unbind = f"cat /sys{device}/uevent >/dev/null", f"echo {name} >/sys/bus/pci/drivers/kt_oopsprobe/unbind"
    guest.check(f"busybox {read if guest.image.suite == 'bookworm' else unbind} 2>&1 & echo $! >/run/lost")
    until(lambda: "disk sleep" in guest.check("grep State /proc/$(cat /run/lost)/status"), 60.0, "the lock is held")
    guest.plug(DEVICES["virtio-rng-pci"])
    until_state(guest, "virtio_rng", "Live")
    settle_kmodd(guest)
    assert any("kt_oopsprobe" in str(each) for each in status(guest)["quarantine"])
    assert f"pci {name}  " in guest.check("kmodd devices", 60)  # libudev would read `uevent`


def test_coldplug_goes_past_the_device_whose_lock_is_held(guest: Machine) -> None:
    restart(guest)
    settle_kmodd(guest)
    guest.plug(DEVICES["rtl8139"])
    until_state(guest, "8139cp", "Live")
    settle_kmodd(guest)
    assert given_to_kernel(guest, "kt_oopsprobe") == 1
    assert guest.check("systemctl show -P NRestarts kmodd").strip() == "0"
