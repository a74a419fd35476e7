"""A machine whose kmodd is stopped, off or broken is as it was: udevd loads again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.vm.devices import DEVICES, Device
from tests.vm.machine import Machine
from tests.vm.payload import Payload

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

Boot = Callable[..., AbstractContextManager[Machine]]

_RULE = "/run/udev/rules.d/80-drivers.rules"
_DROP_IN = "/run/systemd/system/kmodd.service.d"
_BROKEN = "[Service]\nExecStart=\nExecStart=/bin/false\n"


@pytest.fixture(scope="module")
def guest(boot: Boot) -> Iterator[Machine]:
    """kmodd on a stock machine: kmod and libkmod are there."""
    with boot("the guest with kmod", with_kmod=True) as machine:
        yield machine


def _loader(machine: Machine, module: str, timeout: float = 60.0) -> str:
    """The name of the task that loaded `module` last, "" without one in time."""
    deadline = time.monotonic() + timeout
    while True:
        names = [load.comm for load in machine.module_loads() if load.module == module]
        if names or time.monotonic() > deadline:
            return names[-1] if names else ""
        time.sleep(0.5)


def _loader_of_plugged(machine: Machine, device: Device) -> str:
    """Plug a device whose module was never loaded; who loads it?"""
    assert device.module not in machine.modules()
    machine.plug(device)
    return _loader(machine, device.module)


def _wait_for_state(machine: Machine, unit: str, state: str, timeout: float = 120.0) -> None:
    deadline = time.monotonic() + timeout
    while (now := machine.run(f"systemctl is-active {unit}").output.strip()) != state:
        assert time.monotonic() < deadline, f"{unit} is {now}, not {state}"
        time.sleep(0.5)


def test_kmodd_loads_while_it_runs(guest: Machine) -> None:
    assert _loader_of_plugged(guest, DEVICES["e1000e"]) == "kmodd-loader"


def test_udevd_loads_after_a_stop_and_kmodd_after_a_start(guest: Machine) -> None:
    guest.check("systemctl stop kmodd")
    assert guest.run(f"test -L {_RULE}").status == 1
    assert _loader_of_plugged(guest, DEVICES["rtl8139"]) == "(udev-worker)"
    guest.check("systemctl start kmodd")
    assert guest.run(f"test -L {_RULE}").status == 0
    assert _loader_of_plugged(guest, DEVICES["ne2k_pci"]) == "kmodd-loader"


def test_udevd_loads_after_kmodd_failed_again_and_again(guest: Machine) -> None:
    """A device that came while kmodd was blind and udevd's rule masked is driven in the end, by the unit's replay."""
    guest.check("systemctl kill --signal=STOP --kill-who=main kmodd")
    guest.plug(DEVICES["vmxnet3"])
    guest.check("udevadm settle")
    assert "vmxnet3" not in guest.modules()
    guest.check(f"mkdir -p {_DROP_IN} && printf '%s' '{_BROKEN}' >{_DROP_IN}/broken.conf")
    guest.check("systemctl daemon-reload && systemctl kill --signal=KILL --kill-who=main kmodd")
    assert _loader(guest, "vmxnet3", timeout=120.0) == "(udev-worker)"
    _wait_for_state(guest, "kmodd", "failed")
    assert guest.run(f"test -L {_RULE}").status == 1
    assert guest.check("cat /proc/sys/kernel/modprobe").strip() == "/sbin/modprobe"
    guest.check(f"rm {_DROP_IN}/broken.conf && systemctl daemon-reload")
    guest.check("systemctl reset-failed kmodd && systemctl start kmodd")
    assert _loader_of_plugged(guest, DEVICES["virtio-rng-pci"]) == "kmodd-loader"


def test_off_on_the_command_line_leaves_all_as_it_was(boot: Boot) -> None:
    with boot("the guest with kmodd=off", with_kmod=True, append="kmodd=off", active=False) as machine:
        _wait_for_state(machine, "kmodd", "inactive", timeout=0.0)
        assert machine.run(f"test -e {_RULE}").status == 1
        assert machine.check("cat /proc/sys/kernel/modprobe").strip() == "/sbin/modprobe"
        assert _loader_of_plugged(machine, DEVICES["e1000e"]) == "(udev-worker)"
        assert "kmodd-loader" not in {load.comm for load in machine.module_loads()}


@pytest.mark.long
def test_a_broken_kmodd_does_not_hold_up_the_boot(boot: Boot) -> None:
    def prepare(payload: Payload) -> None:
        payload.write("/etc/systemd/system/kmodd.service.d/broken.conf", _BROKEN)

    with boot("the guest with a broken kmodd", with_kmod=True, prepare=prepare, active=False) as machine:
        _wait_for_state(machine, "multi-user.target", "active", timeout=0.0)
        _wait_for_state(machine, "kmodd", "failed")
        assert _loader(machine, "psmouse") == "(udev-worker)"
        assert _loader_of_plugged(machine, DEVICES["e1000e"]) == "(udev-worker)"
