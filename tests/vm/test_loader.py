"""A loader inside a module's init outlives the daemon: killing it would leave a device unusable until the next boot."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.vm.devices import DEVICES, Device
from tests.vm.fixture_modules import add_module, fixture_modules
from tests.vm.image import Image
from tests.vm.journal import text
from tests.vm.machine import Machine
from tests.vm.payload import Payload
from tests.vm.scenario import plug, settle, stranger_faults

pytestmark = [pytest.mark.vm, pytest.mark.timeout(180)]

# Devices that no driver of Debian's wants, so that ours get them.
_SLOW = Device("edu", "kt_slow", {"driver": "edu"})
_REFUSED = Device("pci-testdev", "kt_refuse", {"driver": "pci-testdev"})
_SLOW_INIT = 25  # seconds of kt_slow's init, by a line of modprobe.d; where it need not be so long:
_SHORTER = 10


@pytest.fixture(scope="module")
def guest(image: Image, boot: Callable[..., AbstractContextManager[Machine]]) -> Iterator[Machine]:
    modules = fixture_modules(image)

    def prepare(payload: Payload) -> None:
        add_module(payload, image, modules["kt_slow"], ("pci:v00001234d000011E8sv*sd*bc*sc*i*",))
        add_module(payload, image, modules["kt_refuse"], ("pci:v00001B36d00000005sv*sd*bc*sc*i*",))

    with boot("the guest with a slow module", prepare=prepare) as machine:
        yield machine


def _plug_slow(machine: Machine, seconds: int) -> None:
    """Have kt_slow start for so long, and be there when it has begun to."""
    machine.check(f"echo options kt_slow seconds={seconds} >/etc/modprobe.d/slow.conf; kmodd reload")
    machine.plug(_SLOW)
    _wait_for_state(machine, "Loading", 20.0)


def _wait_for_state(machine: Machine, state: str, timeout: float) -> None:
    """Wait until /proc/modules says `state` (Loading, Live) of kt_slow."""
    deadline = time.monotonic() + timeout
    while state not in (now := machine.modules().get("kt_slow", "not there")).split():
        assert time.monotonic() < deadline, f"kt_slow: {now}"
        time.sleep(0.3)


def _loads(machine: Machine, module: str) -> int:
    """How often the kernel was given it."""
    return [load.module for load in machine.module_loads()].count(module)


def _loader(machine: Machine) -> int:
    """The process that loads kt_slow."""
    (load,) = [load for load in machine.module_loads() if load.module == "kt_slow"][-1:]
    assert load.comm == "kmodd-loader"
    return load.pid


@pytest.mark.parametrize(("verb", "seconds"), [("restart", _SLOW_INIT), ("stop", _SHORTER)])
def test_a_loader_in_an_init_is_not_killed(guest: Machine, verb: str, seconds: int) -> None:
    loads = _loads(guest, "kt_slow")
    started = time.monotonic()
    _plug_slow(guest, seconds)
    loader = _loader(guest)
    guest.check(f"systemctl {verb} kmodd")
    assert "Loading" in guest.modules()["kt_slow"], "the test was too slow to show anything"
    assert guest.run(f"kill -0 {loader}").status == 0
    guest.check("systemctl start kmodd")
    _wait_for_state(guest, "Live", seconds + 20.0)
    assert time.monotonic() - started > seconds, "options of modprobe.d were not used"
    assert guest.run("dmesg | grep -e 'Oops:' -e 'BUG:' -e 'blocked for'").status == 1
    settle(guest)
    assert _loads(guest, "kt_slow") == loads + 1
    guest.unplug(_SLOW)
    settle(guest)
    guest.remove_module("kt_slow")


def test_what_makes_the_loaders_is_replaced_while_one_is_in_an_init(guest: Machine) -> None:
    """Killed, with all loaders that have nothing to do: an operator's module has a new one at once."""
    _plug_slow(guest, _SLOW_INIT)
    loader = _loader(guest)
    old = guest.check("busybox pidof kmodd-spawner").strip()
    guest.check(
        f"kill -KILL {old}; for p in $(busybox pidof kmodd-loader); do [ $p = {loader} ] || kill -KILL $p; done"
    )
    guest.check("/usr/lib/kmodd/bin/modprobe dummy", 10.0)
    assert "Live" in guest.modules()["dummy"]
    assert "Loading" in guest.modules()["kt_slow"], "the test was too slow to show anything"
    assert guest.check("busybox pidof kmodd-spawner").strip() != old
    _wait_for_state(guest, "Live", _SLOW_INIT + 20.0)
    guest.unplug(_SLOW)
    settle(guest)
    guest.remove_module("kt_slow")
    guest.remove_module("dummy")


def test_other_devices_are_told_what_they_wait_for_or_served(guest: Machine) -> None:
    """The device plugged while a slow init runs gets its driver when that is over, at the latest."""
    _plug_slow(guest, _SHORTER)
    plugged = plug(guest, DEVICES["virtio-rng-pci"], timeout=_SHORTER + 30.0)
    assert plugged.faults() == []
    _wait_for_state(guest, "Live", _SHORTER + 20.0)


def test_a_module_that_refuses_is_recorded_and_not_tried_again_and_again(guest: Machine) -> None:
    mark = guest.journal.mark()
    guest.plug(_REFUSED)
    record = guest.journal.wait_for(lambda each: text(each, "KMODD_MODULE") == "kt_refuse", timeout=40.0, since=mark)
    assert (text(record, "KMODD_RESULT"), text(record, "ERRNO")) == ("failed", "19")
    assert text(record, "KMODD_PATTERN") == "pci:v00001B36d00000005sv*sd*bc*sc*i*"
    settle(guest)
    assert _loads(guest, "kt_refuse") == 1
    assert stranger_faults(guest.module_loads()) == []
