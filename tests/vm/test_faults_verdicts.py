"""Why the kernel itself refuses a module, in words that help an administrator: one guest for each kind of boot."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.vm.devices import DEVICES, Device
from tests.vm.faults import appear, prepare_faults, record_of, settle_kmodd, state, until_state
from tests.vm.image import Image
from tests.vm.journal import Record, text
from tests.vm.machine import Machine
from tests.vm.payload import Payload

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

Boot = Callable[..., AbstractContextManager[Machine]]

# Modules of Debian's own carry its signature, ours carry none; kt_bus could not be loaded to make devices.
_ALIAS = "alias pci:v00001B36d00000005sv*sd*bc*sc*i* kt_plain\nblacklist kt_oopsprobe\n"
_WANTS_OURS = Device("pci-testdev", "kt_plain", {"driver": "pci-testdev"})


def _refused(machine: Machine) -> Record:
    """Plug a device that wants an unsigned module and one that wants a signed one; the record of the former."""
    mark = machine.journal.mark()
    machine.plug(_WANTS_OURS)
    record = record_of(machine, "kt_plain", "failed", mark)
    machine.plug(DEVICES["virtio-rng-pci"])
    until_state(machine, "virtio_rng", "Live")
    assert state(machine, "kt_plain") == ""
    return record


@pytest.fixture
def prepare(image: Image) -> Callable[[Payload], None]:
    def with_ours(payload: Payload) -> None:
        prepare_faults(payload, image)
        payload.write("/etc/modprobe.d/signed.conf", _ALIAS)

    return with_ours


def test_a_kernel_that_demands_signatures(boot: Boot, prepare: Callable[[Payload], None]) -> None:
    with boot("the guest with module.sig_enforce=1", append="module.sig_enforce=1", prepare=prepare) as machine:
        record = _refused(machine)
        assert text(record, "ERRNO") == str(errno.EKEYREJECTED)
        assert "not signed" in text(record, "MESSAGE"), record
        assert "module.sig_enforce" in text(record, "MESSAGE"), record


def test_a_kernel_in_lockdown(boot: Boot, prepare: Callable[[Payload], None]) -> None:
    with boot("the guest with lockdown=integrity", append="lockdown=integrity", prepare=prepare) as machine:
        record = _refused(machine)
        assert text(record, "ERRNO") == str(errno.EPERM)
        assert "lockdown" in text(record, "MESSAGE"), record
        for other in ("module_blacklist", "modules_disabled", "CAP_SYS_MODULE"):
            assert other not in text(record, "MESSAGE"), record


def test_a_blacklist_for_the_kernel_and_a_closed_door(boot: Boot, prepare: Callable[[Payload], None]) -> None:
    """`module_blacklist=` names one module; kernel.modules_disabled=1 shuts all out, until the next boot."""
    with boot("the guest with module_blacklist=", append="module_blacklist=kt_late", prepare=prepare) as machine:
        mark = machine.journal.mark()
        appear(machine, "kt_late")
        record = record_of(machine, "kt_late", "blocked", mark)
        assert text(record, "ERRNO") == str(errno.EPERM)
        assert "module_blacklist=kt_late at /proc/cmdline:1" in text(record, "MESSAGE"), record
        for other in ("lockdown", "modules_disabled", "CAP_SYS_MODULE"):
            assert other not in text(record, "MESSAGE"), record
        appear(machine, "kt_plain")
        record_of(machine, "kt_plain", "loaded", mark)

        settle_kmodd(machine)
        machine.check("echo 1 >/proc/sys/kernel/modules_disabled")
        mark = machine.journal.mark()
        machine.plug(DEVICES["virtio-rng-pci"])
        record = record_of(machine, "virtio_rng", "failed", mark)
        assert "modules_disabled" in text(record, "MESSAGE"), record
        for other in ("lockdown", "module_blacklist", "CAP_SYS_MODULE"):
            assert other not in text(record, "MESSAGE"), record
        settle_kmodd(machine)
