"""The machine is suspended while a module is in its init."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest

from tests.vm.faults import appear, let_go, prepare_faults, record_of, state, status, until, until_state, without_udevd
from tests.vm.image import Image
from tests.vm.machine import Machine
from tests.vm.payload import Payload

pytestmark = [pytest.mark.vm, pytest.mark.long, pytest.mark.timeout(1200)]


def _suspend(machine: Machine) -> int:
    """Suspend the machine to idle, and press its power button until it is awake. Returns 0 if the kernel did that."""
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(machine.run, "echo freeze >/sys/power/state", 300)
        until(lambda: machine.qmp.execute("system_powerdown") or asked.done(), 300.0, "the machine is awake")
        return asked.result().status


def _suspends(machine: Machine) -> int:
    return int(machine.check("busybox cat /sys/power/suspend_stats/success"))


@pytest.fixture(scope="module")
def guest(image: Image, boot: Callable[..., AbstractContextManager[Machine]]) -> Iterator[Machine]:
    def prepare(payload: Payload) -> None:
        prepare_faults(payload, image)
        without_udevd(payload)

    with boot("the guest that sleeps", prepare=prepare) as machine:
        yield machine


def test_a_machine_is_suspended_while_a_lane_is_busy(guest: Machine) -> None:
    """The init goes on where it was, and what appears while it does is served."""
    daemon, mark, suspends = guest.check("pgrep -f 'kmodd run'"), guest.journal.mark(), _suspends(guest)
    appear(guest, "kt_freeze")
    until_state(guest, "kt_freeze", "Loading")
    assert _suspend(guest) == 0
    assert _suspends(guest) == suspends + 1
    assert state(guest, "kt_freeze") == "Loading"
    appear(guest, "kt_plain")
    until_state(guest, "kt_plain", "Live", 120.0)
    assert state(guest, "kt_freeze") == "Loading"
    let_go(guest, "kt_freeze")
    record_of(guest, "kt_freeze", "loaded", mark)
    assert (guest.check("pgrep -f 'kmodd run'"), status(guest)["stuck"]) == (daemon, [])


def test_an_init_that_cannot_be_frozen_keeps_the_machine_awake(guest: Machine) -> None:
    """The kernel's rule, as under udevd: the suspend fails, and all goes on. The control of the test before."""
    mark, suspends = guest.journal.mark(), _suspends(guest)
    guest.check("echo 3000 >/sys/power/pm_freeze_timeout")
    appear(guest, "kt_slow")
    until_state(guest, "kt_slow", "Loading")
    assert _suspend(guest) != 0
    assert "refusing to freeze" in guest.check("dmesg")
    assert _suspends(guest) == suspends
    appear(guest, "kt_ten")
    until_state(guest, "kt_ten", "Live", 120.0)
    let_go(guest)
    record_of(guest, "kt_slow", "loaded", mark)
