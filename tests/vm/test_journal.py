"""The journal as it is without settings: what a person reads after a boot and a plug."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.vm.conftest import LOG_LEVEL
from tests.vm.devices import DEVICES
from tests.vm.journal import Record, text, texts
from tests.vm.machine import Machine
from tests.vm.payload import Payload
from tests.vm.scenario import plug

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

_USUAL = 100
"""Characters of a sentence."""


@pytest.fixture(scope="module")
def guest(boot: Callable[..., AbstractContextManager[Machine]]) -> Iterator[Machine]:
    def prepare(payload: Payload) -> None:
        payload.write(LOG_LEVEL, "")

    with boot("the guest whose journal is read", prepare=prepare) as machine:
        yield machine


def _shown(records: list[Record]) -> str:
    return "\n".join(f"{text(record, 'PRIORITY')} {text(record, 'MESSAGE')}" for record in records)


def test_a_boot_and_its_devices_fit_on_a_screen(guest: Machine) -> None:
    """The demo's journal: at most 50 lines."""
    for name in ("e1000e", "virtio-rng-pci", "qemu-xhci"):
        assert plug(guest, DEVICES[name]).faults() == []
    guest.mark()
    records = guest.journal.records
    assert len(records) <= 45, _shown(records)
    assert [record for record in records if len(text(record, "MESSAGE")) > _USUAL] == [], _shown(records)
    assert text(records[0], "MESSAGE").startswith("Listening, kernel ")
    (done,) = [text(record, "MESSAGE") for record in records if text(record, "MESSAGE").startswith("Coldplug done in ")]
    assert " devices, " in done
    assert ", slowest " in done


def test_a_usb_stick_is_three_records_at_most(guest: Machine) -> None:
    mark = guest.mark()
    plugged = plug(guest, DEVICES["usb-storage"])
    assert plugged.faults() == []
    guest.mark()
    records = guest.journal.after(mark)
    assert len(records) <= 3, _shown(records)
    (loaded,) = [record for record in records if "usb_storage" in texts(record, "KMODD_MODULES")]
    assert text(loaded, "MESSAGE").startswith("Loaded ")
    assert text(loaded, "KMODD_SUBSYSTEM") == "usb"
    name = text(loaded, "KMODD_DEVICE_NAME")  # no record waits for it
    assert name in ("", "QEMU USB HARDDRIVE")
    assert not name or f' "{name}" in ' in text(loaded, "MESSAGE")
    begin, wait = int(text(loaded, "KMODD_BEGIN_MONOTONIC_USEC")), int(text(loaded, "KMODD_WAIT_USEC"))
    assert 0 < begin < begin + wait < int(text(loaded, "__MONOTONIC_TIMESTAMP"))
    inits = dict(each.split(":") for each in texts(loaded, "KMODD_INIT_USEC"))
    assert list(inits) == texts(loaded, "KMODD_MODULES")
    assert sum(map(int, inits.values())) <= int(text(loaded, "KMODD_DURATION_USEC"))


def test_debug_is_on_when_it_is_set_and_off_again(guest: Machine) -> None:
    """`LogLevel=debug` in kmodd.conf: what is there already is recorded, and not without."""
    device = DEVICES["e1000e"]
    for level, results in (("debug", ["live"]), ("info", [])):
        guest.check(f"mkdir -p /etc/kmodd; printf '[Kmodd]\\nLogLevel={level}\\n' >/etc/kmodd/kmodd.conf; kmodd reload")
        guest.unplug(device)
        mark = guest.mark()
        guest.plug(device)
        guest.check("udevadm settle && kmodd settle", 120)
        guest.mark()
        told = [record for record in guest.journal.after(mark) if text(record, "KMODD_MODULE") == "e1000e"]
        assert [text(record, "KMODD_RESULT") for record in told] == results
