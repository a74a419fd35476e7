"""The journal as it is without settings: what a person reads after a boot and a plug."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from xml.etree import ElementTree

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
    build_ids = dict(each.split(":") for each in texts(loaded, "KMODD_BUILD_ID"))
    assert list(build_ids) == list(inits)
    assert all(len(each) == 40 for each in build_ids.values())
    note = guest.check("od -An -v -tx1 /sys/module/usb_storage/notes/.note.gnu.build-id")
    assert "".join(note.split()).endswith(build_ids["usb_storage"])


def test_the_timeline_of_the_boot_has_its_loads(guest: Machine) -> None:
    """As a picture and as text; what the boot waited for is marked or named, and blame begins with the slowest."""
    loads = [json.loads(line) for line in guest.check("kmodd timeline --json", 120).splitlines()]
    inits = {each["module"]: each["usec"] for load in loads for each in load["inits"]}
    assert {"ahci", "i2c_i801"} <= set(inits)
    picture = ElementTree.fromstring(guest.check("kmodd timeline", 120))
    shown = "".join(picture.itertext())
    assert all(load["module"] in shown for load in loads)
    # on a slow machine the end of coldplug may come seconds after the last load
    assert any(load["awaited"] for load in loads) or "no load for " in shown
    assert "#" in guest.check("kmodd timeline --text", 120)
    rows = [json.loads(line) for line in guest.check("kmodd blame --json", 120).splitlines()]
    assert rows[0]["usec"] == max(row["usec"] for row in rows) == max(inits.values())


def test_monitors_of_root_and_of_users_have_each_decision(guest: Machine) -> None:
    """What is left out for users, `tests/unit/daemon/test_monitors.py` shows."""
    guest.check(
        "for who in 0 65534; do systemd-run -q --unit=monitor$who --uid=$who -p StandardOutput=file:/tmp/monitor$who "
        "kmodd monitor --json; done; "
        "until [ $(busybox grep -c /run/kmodd/io.kmodd /proc/net/unix) -ge 3 ]; do busybox usleep 100000; done"
    )
    mark = guest.mark()
    assert plug(guest, DEVICES["virtio-balloon-pci"]).faults() == []
    guest.mark()
    told = [text(record, "MESSAGE") for record in guest.journal.after(mark) if "KMODD_RESULT" in record]
    assert told
    for uid in (0, 65534):
        objects = [json.loads(part) for part in guest.check(f"cat /tmp/monitor{uid}").split("\x1e")[1:]]
        assert [each["message"] for each in objects] == told
    assert json.loads(guest.check("kmodd status --json"))["readers_dropped"] == 0
    guest.check("systemctl stop monitor0 monitor65534")
    assert guest.run("kmodd wait nosuch").status == 1
    assert guest.run("kmodd wait --timeout 0 --json pcnet32").status == 1, "a module that nothing loads now"


@pytest.mark.long
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
