"""A full /run: devices get their drivers, a daemon starts, and what is not kept for the next one is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

import pytest

from tests.vm.devices import DEVICES
from tests.vm.faults import MODPROBE, appear, prepare_faults, status, until, until_state, without_udevd
from tests.vm.image import Image
from tests.vm.machine import Machine
from tests.vm.payload import Payload

pytestmark = [pytest.mark.vm, pytest.mark.long, pytest.mark.timeout(1200)]

_SHELLS_FILES: Final = """\
[Service]
ExecStartPre=/bin/busybox mkdir -p /run/vm
ExecStartPre=/bin/busybox mount -t tmpfs tmpfs /run/vm
"""


@contextmanager
def _full_run(machine: Machine) -> Iterator[None]:
    """Make /run no larger than what is in it."""
    machine.check("busybox mount -o remount,size=$(busybox df -k /run | busybox awk 'END { print $3 }')k /run")
    assert machine.run("busybox dd if=/dev/zero of=/run/more bs=4k count=1").status != 0
    try:
        yield
    finally:
        machine.check("busybox mount -o remount,size=20% /run; rm /run/more")


def test_with_a_full_run_devices_get_their_drivers_and_what_is_not_kept_is_said(
    image: Image, boot: Callable[..., AbstractContextManager[Machine]]
) -> None:
    """The loss: a module that was removed is loaded again by the next daemon.

    The control is `test_what_an_operator_removed_stays_removed_and_drift_is_loaded`, in a /run with space.
    """

    def prepare(payload: Payload) -> None:
        prepare_faults(payload, image)
        without_udevd(payload)
        payload.write("/etc/systemd/system/vm-shell.service.d/full.conf", _SHELLS_FILES)

    with boot("the guest with a full /run", prepare=prepare) as guest:
        appear(guest, "kt_late")
        until_state(guest, "kt_late", "Live")
        with _full_run(guest):
            guest.plug(DEVICES["virtio-rng-pci"])
            until_state(guest, "virtio_rng", "Live", 120.0)
            guest.check(f"{MODPROBE} -r kt_late", 300)
            wanted = "Failed to write /run/kmodd/standing: No space left on device"
            until(lambda: wanted in str(status(guest)["problems"]), 60.0, "status says it")
            guest.check("systemctl reset-failed kmodd; systemctl restart kmodd", 90)
            until(lambda: guest.run("kmodd settle", 130).status == 0, 180.0, "a daemon starts in a full /run")
            until_state(guest, "kt_late", "Live")
