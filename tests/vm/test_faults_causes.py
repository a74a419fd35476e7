"""Tried again with a cause, never blindly; and never against the will of an operator.

One guest whose indexes lack kt_late at first. `ReconcileSec=600` in the first half: what heals there does it by itself,
not by the slow timer; `ReconcileSec=5` in the second.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from kmodd.state.result_cache import REFUSAL_STANDS
from tests.vm.devices import Device
from tests.vm.faults import (
    MODPROBE,
    appear,
    appear_quietly,
    given_to_kernel,
    prepare_faults,
    record_of,
    restart,
    results,
    settle_kmodd,
    state,
    status,
    synthetic,
    until,
    until_state,
    vanish,
)
from tests.vm.fixture_modules import indexes
from tests.vm.image import Image
from tests.vm.journal import text
from tests.vm.machine import Machine
from tests.vm.payload import Payload, copy_into

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

_OPTIONS = "/etc/modprobe.d/refuse.conf"
_NEEDS_FIRMWARE = Device("edu", "kt_firmware", {"driver": "edu"})
_PROCESSORS = 1536


@pytest.fixture(scope="module")
def guest(image: Image, boot: Callable[..., AbstractContextManager[Machine]]) -> Iterator[Machine]:
    def prepare(payload: Payload) -> None:
        prepare_faults(payload, image, conf="ReconcileSec=600\n", without=("kt_late",))
        copy_into(payload, indexes(image), "/root/indexes")

    with boot("the guest of causes", prepare=prepare) as machine:
        yield machine


def _tree(machine: Machine) -> str:
    return f"/usr/lib/modules/{machine.image.release}"


# ── a cause, and what it brings ────────────────────────────────────────────────────────────────────────────────────


def test_an_index_that_comes_to_know_more_loads_what_failed_for_want_of_it(guest: Machine) -> None:
    """A missing symbol (ENOENT), and a device without a match: both without a trigger."""
    mark = guest.journal.mark()
    appear(guest, "kt_unknown")
    appear(guest, "kt_late")
    failed = record_of(guest, "kt_unknown", "failed", mark)
    assert text(failed, "ERRNO") == str(errno.ENOENT)
    guest.journal.wait_for(lambda each: text(each, "KMODD_ALIAS") == "platform:kt_late", 60.0, mark)
    settle_kmodd(guest)
    synthetic(guest, "kt_unknown", rounds=5)
    settle_kmodd(guest)
    assert results(guest, "kt_unknown", mark).count("failed") == 1, "tried again without a cause"
    # one rename after the other, as depmod does it
    guest.check(f"for f in /root/indexes/*; do mv $f {_tree(guest)}/; done")
    until_state(guest, "kt_late", "Live")
    until_state(guest, "kt_unknown", "Live")
    record_of(guest, "kt_unknown", "loaded", mark)


@pytest.mark.long
def test_a_file_that_was_missing_is_loaded_when_it_comes(guest: Machine) -> None:
    guest.check(f"mv {_tree(guest)}/updates/kt_plain.ko /root/")
    mark = guest.journal.mark()
    appear(guest, "kt_plain")
    record_of(guest, "kt_plain", "missing", mark)
    guest.check(f"mv /root/kt_plain.ko {_tree(guest)}/updates/")
    record_of(guest, "kt_plain", "loaded", mark)


def test_firmware_that_comes_later_has_the_device_probed_again(guest: Machine) -> None:
    mark = guest.journal.mark()
    guest.plug(_NEEDS_FIRMWARE)
    record = record_of(guest, "kt_firmware", "loaded", mark)
    driver = f"/sys{text(record, 'KMODD_DEVPATH')}/driver"
    settle_kmodd(guest)
    assert "kt_firmware.bin" in guest.check("dmesg | grep 'Direct firmware load'")
    assert guest.run(f"test -e {driver}").status == 1, "bound without its firmware: the test shows nothing"
    guest.check("mkdir -p /usr/lib/firmware && echo x >/root/f && mv /root/f /usr/lib/firmware/kt_firmware.bin")
    until(lambda: guest.run(f"test -e {driver}").status == 0, 60.0, "the device is bound")


# ── no cause ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_module_that_found_nothing_is_tried_once_for_all_processors(guest: Machine) -> None:
    """ENODEV: neither for synthetic events nor for more real devices with the same alias."""
    mark, before = guest.journal.mark(), given_to_kernel(guest, "kt_refuse")
    appear(guest, "kt_refuse")
    failed = record_of(guest, "kt_refuse", "failed", mark)
    assert text(failed, "ERRNO") == str(errno.ENODEV)
    began = time.monotonic()
    appear(guest, "kt_refuse", _PROCESSORS - 1)
    settle_kmodd(guest)
    # A refusal stands so long since it was asked for last: a machine that stood still for longer has one try more.
    tries = 1 + int((time.monotonic() - began) / REFUSAL_STANDS)
    synthetic(guest, "kt_refuse", rounds=2)
    settle_kmodd(guest)
    assert before < given_to_kernel(guest, "kt_refuse") <= before + tries
    assert 1 <= results(guest, "kt_refuse", mark).count("failed") <= tries
    assert status(guest)["waiting"] == 0
    vanish(guest, "kt_refuse")


@pytest.mark.long
def test_what_was_busy_is_tried_again_soon(guest: Machine) -> None:
    before = given_to_kernel(guest, "kt_refuse")
    guest.check(f"echo options kt_refuse errno={errno.EBUSY:d} >{_OPTIONS}")
    appear(guest, "kt_refuse")
    until(lambda: given_to_kernel(guest, "kt_refuse") >= before + 2, 60.0, "tried a second time")
    vanish(guest, "kt_refuse")
    guest.check(f"rm {_OPTIONS}")
    settle_kmodd(guest)


@pytest.mark.parametrize("number", ["EPERM", "EINTR", "EIO", "ENOMEM", "EBUSY", "EINVAL", "ENODEV", "ETIMEDOUT"])
def test_each_errno_reaches_the_record_and_the_caller(guest: Machine, number: str) -> None:
    mark = guest.journal.mark()
    answer = guest.run(f"{MODPROBE} kt_refuse errno={getattr(errno, number):d}", 60)
    assert answer.status == 1
    assert "could not insert 'kt_refuse'" in answer.output
    wanted = ("kt_refuse", "failed", str(getattr(errno, number)))
    fields = ("KMODD_MODULE", "KMODD_RESULT", "ERRNO")
    guest.journal.wait_for(lambda each: tuple(text(each, field) for field in fields) == wanted, 60.0, mark)


# ── the tree goes and comes ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
def test_the_running_kernels_modules_are_gone_and_come_back(guest: Machine) -> None:
    """As after an upgrade that removed them: said once, shown, healed."""
    mark, tree = guest.journal.mark(), _tree(guest)
    guest.check(f"mv {tree} {tree}.away")
    try:
        appear(guest, "kt_chain_d")  # no module has this alias: it makes the daemon look
        appear(guest, "kt_ten")
        until(lambda: status(guest)["problems"], 60.0, "status shows it")
        assert guest.image.release in str(status(guest)["problems"])
        appear(guest, "kt_chain_d", 3)
        assert state(guest, "kt_ten") == ""
    finally:
        guest.check(f"mv {tree}.away {tree}")
    record_of(guest, "kt_ten", "loaded", mark)
    until(lambda: not status(guest)["problems"], 60.0, "status shows it no longer")
    said = [text(each, "MESSAGE") for each in guest.journal.after(mark)]
    said = [message for message in said if "no module tree" in message]
    assert len(said) == 1, said


# ── an operator's will ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
def test_what_an_operator_removed_stays_removed_and_drift_is_loaded(guest: Machine) -> None:
    """The slow timer loads what a device lacks, but for what was removed by hand, and not against a driver_override."""
    guest.check("printf '[Kmodd]\\nReconcileSec=5\\n' >/etc/kmodd/kmodd.conf && systemctl reload kmodd")
    settle_kmodd(guest)
    assert {"kt_plain", "kt_unknown"} <= set(guest.modules())
    guest.check(f"{MODPROBE} -r kt_plain")  # through the daemon
    guest.remove_module("kt_unknown")  # behind its back; the kernel tells
    for module in ("kt_late", "kt_ten"):
        vanish(guest, module)
    guest.remove_module("kt_late", "kt_ten")
    mark = guest.journal.mark()
    appear_quietly(guest, "kt_async", override="other_driver")
    appear_quietly(guest, "kt_chain_a")
    drift = record_of(guest, "kt_chain_a", "loaded", mark)
    assert text(drift, "KMODD_SOURCE") == "reconcile"
    assert any("drift" in text(each, "MESSAGE").lower() for each in guest.journal.after(mark))
    assert not {"kt_plain", "kt_unknown", "kt_async"} & set(guest.modules()), "after the timer"
    guest.check("systemctl reload kmodd")
    settle_kmodd(guest)
    assert not {"kt_plain", "kt_unknown", "kt_async"} & set(guest.modules()), "after a reload"
    restart(guest)
    settle_kmodd(guest)
    mark = guest.journal.mark()
    appear_quietly(guest, "kt_self")  # the timer has run once more when this one is there
    record_of(guest, "kt_self", "loaded", mark)
    assert not {"kt_plain", "kt_unknown"} & set(guest.modules()), "after a restart"


@pytest.mark.long
def test_a_new_daemon_leaves_a_device_with_an_override_alone(guest: Machine) -> None:
    """It is there since the test before, and the daemon has been restarted since."""
    assert "other_driver" in guest.check("cat /sys/bus/platform/devices/kt_async.*/driver_override")
    assert "kt_async" not in guest.modules()


@pytest.mark.long
def test_a_device_plugged_in_again_loads_a_removed_module(guest: Machine) -> None:
    """Control of the test before: nothing but the memory of the removal kept it away."""
    vanish(guest, "kt_plain")
    mark = guest.journal.mark()
    appear(guest, "kt_plain")
    record_of(guest, "kt_plain", "loaded", mark)
