"""A loader inside a module's init outlives the daemon: killing it would leave a device unusable until the next boot."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.vm.devices import DEVICES, Device
from tests.vm.faults import let_go
from tests.vm.fixture_modules import add_module, fixture_modules
from tests.vm.image import Image
from tests.vm.journal import text
from tests.vm.machine import Machine
from tests.vm.payload import Payload
from tests.vm.scenario import plug, settle, stranger_faults

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

# Devices that no driver of Debian's wants, so that ours get them.
_SLOW = Device("edu", "kt_slow", {"driver": "edu"})
_REFUSED = Device("pci-testdev", "kt_refuse", {"driver": "pci-testdev"})
_SECONDS = 300  # of kt_slow's init, by a line of modprobe.d, unless it is let go


@pytest.fixture(scope="module")
def guest(image: Image, boot: Callable[..., AbstractContextManager[Machine]]) -> Iterator[Machine]:
    modules = fixture_modules(image)

    def prepare(payload: Payload) -> None:
        add_module(payload, image, modules["kt_slow"], ("pci:v00001234d000011E8sv*sd*bc*sc*i*",))
        add_module(payload, image, modules["kt_refuse"], ("pci:v00001B36d00000005sv*sd*bc*sc*i*",))
        payload.write("/etc/modprobe.d/slow.conf", f"options kt_slow seconds={_SECONDS}\n")

    with boot("the guest with a slow module", prepare=prepare) as machine:
        yield machine


def _plug_slow(machine: Machine) -> None:
    """Have kt_slow start, and be there when it has begun to."""
    machine.plug(_SLOW)
    _wait_for_state(machine, "Loading")


def _wait_for_state(machine: Machine, state: str, timeout: float = 60.0) -> None:
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


@pytest.mark.parametrize("verb", ["restart", "stop"])
def test_a_loader_in_an_init_is_not_killed(guest: Machine, verb: str) -> None:
    loads = _loads(guest, "kt_slow")
    _plug_slow(guest)
    loader = _loader(guest)
    guest.check(f"systemctl {verb} kmodd")
    assert "Loading" in guest.modules()["kt_slow"], "the test was too slow to show anything"
    assert guest.run(f"kill -0 {loader}").status == 0
    guest.check("systemctl start kmodd")
    given = guest.check("cat /sys/module/kt_slow/parameters/seconds").strip()
    assert given == str(_SECONDS), "options of modprobe.d were not used"
    let_go(guest)
    _wait_for_state(guest, "Live")
    assert guest.run("dmesg | grep -e 'Oops:' -e 'BUG:' -e 'blocked for'").status == 1
    settle(guest)
    assert _loads(guest, "kt_slow") == loads + 1
    guest.unplug(_SLOW)
    settle(guest)
    guest.remove_module("kt_slow")


def test_what_makes_the_loaders_is_replaced_while_one_is_in_an_init(guest: Machine) -> None:
    """Killed, with all loaders that have nothing to do: an operator's module has a new one at once."""
    _plug_slow(guest)
    loader = _loader(guest)
    old = guest.check("busybox pidof kmodd-spawner").strip()
    guest.check(
        f"kill -KILL {old}; for p in $(busybox pidof kmodd-loader); do [ $p = {loader} ] || kill -KILL $p; done; "
        "true"  # they also end by themselves without what made them
    )
    guest.check("/usr/lib/kmodd/bin/modprobe dummy")
    assert "Live" in guest.modules()["dummy"]
    assert "Loading" in guest.modules()["kt_slow"], "the test was too slow to show anything"
    assert guest.check("busybox pidof kmodd-spawner").strip() != old
    let_go(guest)
    _wait_for_state(guest, "Live")
    guest.unplug(_SLOW)
    settle(guest)
    guest.remove_module("kt_slow")
    guest.remove_module("dummy")


def test_other_devices_are_told_what_they_wait_for_or_served(guest: Machine) -> None:
    """The device plugged while a slow init runs gets its driver when that is over, at the latest."""
    _plug_slow(guest)
    guest.check("(busybox sleep 5; echo 0 >/sys/module/kt_slow/parameters/seconds) >/dev/null 2>&1 </dev/null &")
    assert plug(guest, DEVICES["virtio-rng-pci"]).faults() == []
    _wait_for_state(guest, "Live")


def test_a_module_that_refuses_is_recorded_and_not_tried_again_and_again(guest: Machine) -> None:
    mark = guest.journal.mark()
    guest.plug(_REFUSED)
    record = guest.journal.wait_for(lambda each: text(each, "KMODD_MODULE") == "kt_refuse", timeout=60.0, since=mark)
    assert (text(record, "KMODD_RESULT"), text(record, "ERRNO")) == ("failed", "19")
    assert text(record, "KMODD_PATTERN") == "pci:v00001B36d00000005sv*sd*bc*sc*i*"
    settle(guest)
    assert _loads(guest, "kt_refuse") == 1
    assert stranger_faults(guest.module_loads()) == []
