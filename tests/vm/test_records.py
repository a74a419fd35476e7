"""One guest without kmod: every way in which a device's module is not loaded has its record and stops nothing."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.vm.devices import DEVICES, Device
from tests.vm.image import Image
from tests.vm.journal import Record, text, texts
from tests.vm.machine import Machine
from tests.vm.payload import Payload
from tests.vm.scenario import plug, remove, settle, stranger_faults
from tests.vm.trace import CALLS_TOO, TRACE_FILE, redundant_calls

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

_CONF = "/etc/modprobe.d/vm-test.conf"
_BOOT_LIST = "/etc/modules-load.d/vm-test.conf"

# Devices that no driver of Debian's wants. Built-in drivers of this kernel tell no device aliases (they do since 6.16),
# so one of the devices gets a built-in driver by modprobe.d.
_BUILTIN = Device("tpci200", "", {"driver": "tpci200"})
_UNKNOWN = Device("pci-testdev", "", {"driver": "pci-testdev"})


@pytest.fixture(scope="module")
def guest(image: Image, boot: Callable[..., AbstractContextManager[Machine]]) -> Iterator[Machine]:
    """A guest in which kmodd alone can load, i6300esb is blacklisted and vmxnet3's file is gone."""
    (dep,) = [
        line.partition(":")[0]
        for line in (image.modules / "modules.dep").read_text().splitlines()
        if "/vmxnet3.ko" in line.partition(":")[0]
    ]

    def prepare(payload: Payload) -> None:
        payload.write(_CONF, "# a comment\nblacklist i6300esb\nalias pci:v00001498d000030C8sv*sd* rtc_cmos\n")
        payload.write(_BOOT_LIST, "loop\nno_such_module\n")
        payload.remove.append(f"/usr/lib/modules/{image.release}/{dep}")

    with boot("the guest of records", append=CALLS_TOO, prepare=prepare) as machine:
        yield machine


def _record(machine: Machine, result: str, module: str, since: int = 0, alias: str = "") -> Record:
    """Wait for kmodd's record of `result` for `module`; "" for any. `alias`: what its alias begins with."""

    def wanted(record: Record) -> bool:
        fits = text(record, "KMODD_RESULT") == result and module in ("", text(record, "KMODD_MODULE"))
        return fits and text(record, "KMODD_ALIAS").startswith(alias)

    return machine.journal.wait_for(wanted, timeout=60.0, since=since)


def _plug(machine: Machine, device: Device, result: str, module: str) -> Record:
    """Plug a device and return kmodd's record of `result`; the device is unplugged again."""
    mark = machine.mark()
    machine.plug(device)
    try:
        record = _record(machine, result, module, mark)
        settle(machine)
        assert text(record, "KMODD_SOURCE") == "uevent"
        assert text(record, "KMODD_ALIAS").startswith("pci:v")
        assert texts(record, "KMODD_DEVPATH")[0].startswith("/devices/pci0000:00/")
        return record
    finally:
        machine.unplug(device)
        settle(machine)


def test_the_guest_has_no_other_loader(guest: Machine) -> None:
    assert guest.run("ls /sbin/modprobe /usr/bin/kmod").status != 0
    assert guest.check("cat /proc/sys/kernel/modprobe").strip() == ""
    assert guest.check("systemctl is-active kmodd systemd-udevd").split() == ["active", "active"]
    assert guest.check("readlink /run/udev/rules.d/80-drivers.rules").strip() == "/dev/null"


def test_coldplug_loaded_and_recorded(guest: Machine) -> None:
    loads = guest.module_loads()
    assert stranger_faults(loads) == []
    by_kmodd = {load.module for load in loads if load.comm == "kmodd-loader"}
    assert {"i2c_i801", "ahci", "psmouse"} <= by_kmodd
    guest.mark()  # all that was recorded until now is here
    recorded = {
        text(record, "KMODD_MODULE") for record in guest.journal.records if text(record, "KMODD_RESULT") == "loaded"
    }
    assert by_kmodd - {"acpi_cpufreq", "pcc_cpufreq", "powernow_k8", "edac_mce_amd"} <= recorded
    assert {text(record, "KMODD_SOURCE") for record in guest.journal.records} >= {"coldplug"}
    calls = redundant_calls(guest.check(f"busybox cat {TRACE_FILE}", 120))
    assert calls == []  # what udevd gives to the kernel in vain is test_many_cpus.py's control


def test_a_call_in_vain_is_seen() -> None:
    """Control of the test before, without a guest: a module that another task loads, too."""
    answers = "  udevd-9 [000] ..... 4.0: sys_finit_module -> 0x0\n  udevd-8 [001] ..... 4.1: sys_finit_module -> {}\n"
    assert redundant_calls(answers.format("0x0")) == []
    assert redundant_calls(answers.format("0xffffffffffffffef")) == ["EEXIST:udevd"]


def test_the_boot_list_came_in_through_kmodd_before_it_was_ready(guest: Machine) -> None:
    """Boot list: loaded at start through the same line, reported like the rest; later services rely on it."""
    record = _record(guest, "loaded", "loop")
    assert text(record, "KMODD_SOURCE") == "boot"
    assert text(record, "KMODD_BECAUSE") == f"listed in {_BOOT_LIST}:1"
    _record(guest, "nomatch", "", alias="no_such_module")
    assert guest.check("systemctl show -P ConditionResult systemd-modules-load").strip() == "no"
    times = guest.check("systemctl show -P ActiveEnterTimestampMonotonic kmodd").strip()
    # By the kernel's trace: journald's time is when it got round to reading the record.
    (load,) = [each for each in guest.module_loads() if each.module == "loop"]
    assert load.seconds * 1e6 + int(text(record, "KMODD_DURATION_USEC")) < int(times)


def test_replay_reads_what_a_walk_over_all_of_sysfs_finds(guest: Machine) -> None:
    """Coldplug: nothing with a `modalias` file stands outside of the buses and classes that are read."""
    walked = set(guest.check("find /sys/devices -name modalias -size +0 -exec grep -l . {} + | sort").split())
    program = (
        "import sys; sys.path.insert(0, '/usr/lib/kmodd'); from kmodd.host.coldplug import replay; "
        "print(*(f'/sys{e.devpath}/modalias' for e in replay('')))"
    )
    assert set(guest.check(f'python3 -c "{program}"', 60).split()) == walked
    assert len(walked) > 40


def test_a_driver_that_refuses_has_its_errno(guest: Machine) -> None:
    record = _record(guest, "failed", "")
    assert text(record, "KMODD_MODULE") in {"acpi_cpufreq", "pcc_cpufreq", "powernow_k8", "edac_mce_amd"}
    assert int(text(record, "ERRNO")) in (errno.ENODEV, errno.EBUSY)
    # every processor has the same modalias: a refused module is tried once for an alias, not once for each device
    refused = text(record, "KMODD_MODULE")
    aliases = {text(each, "KMODD_ALIAS") for each in guest.journal.records if text(each, "KMODD_MODULE") == refused}
    assert [each.module for each in guest.module_loads()].count(refused) <= len(aliases)


def test_a_live_module_is_recorded_as_live(guest: Machine) -> None:
    device = DEVICES["e1000e"]
    first = plug(guest, device)
    assert first.faults() == []
    guest.unplug(device)
    settle(guest)
    _plug(guest, device, "live", "e1000e")
    assert [load.module for load in guest.module_loads()].count("e1000e") == 1


def test_a_builtin_driver_is_recorded_as_builtin(guest: Machine) -> None:
    before = set(guest.modules())
    _plug(guest, _BUILTIN, "builtin", "rtc_cmos")
    assert set(guest.modules()) == before


def test_a_blacklisted_driver_is_recorded_with_its_line(guest: Machine) -> None:
    record = _plug(guest, DEVICES["i6300esb"], "blacklisted", "i6300esb")
    assert (text(record, "KMODD_FILE"), text(record, "KMODD_LINE")) == (_CONF, "2")
    assert "i6300esb" not in guest.modules()


def test_a_missing_file_is_recorded(guest: Machine) -> None:
    record = _plug(guest, DEVICES["vmxnet3"], "missing", "vmxnet3")
    assert text(record, "KMODD_PATH").removesuffix(".xz").endswith("/vmxnet3.ko")
    assert "vmxnet3" not in guest.modules()


def test_a_device_without_a_driver_is_recorded(guest: Machine) -> None:
    _plug(guest, _UNKNOWN, "nomatch", "")


def test_none_of_it_stopped_anything(guest: Machine) -> None:
    pid = guest.check("systemctl show -P MainPID kmodd").strip()
    plugged = plug(guest, DEVICES["virtio-rng-pci"])
    assert plugged.faults() == []
    assert guest.check("systemctl show -P NRestarts kmodd").strip() == "0"
    assert guest.check("systemctl show -P MainPID kmodd").strip() == pid


def test_a_removed_module_is_loaded_again(guest: Machine) -> None:
    device = DEVICES["rtl8139"]
    first = plug(guest, device)
    assert first.faults() == []
    guest.unplug(device)
    settle(guest)
    remove(guest, first)
    assert plug(guest, device).faults() == []
    guest.unplug(device)


def test_a_device_that_had_no_driver_gets_it_when_depmod_has_run(guest: Machine, image: Image) -> None:
    """A running daemon takes the new set over at once and tries again the devices that had no driver."""
    folder = f"/usr/lib/modules/{image.release}"
    path = guest.check(f"find {folder}/kernel -name 'pcnet32.ko*'").strip()
    guest.check(f"mv {path} /root/ && kmodd depmod {image.release}", 300)
    mark = guest.journal.mark()
    device = DEVICES["pcnet"]
    guest.plug(device)
    _record(guest, "nomatch", "", mark, alias="pci:v00001022d00002000")
    guest.check(f"mv /root/pcnet32.ko* {path} && kmodd depmod {image.release}", 200)
    record = _record(guest, "loaded", "pcnet32", mark)
    assert text(record, "KMODD_SOURCE") == "reconcile"
    guest.unplug(device)
    settle(guest)


def test_hotplug_works_after_a_restart(guest: Machine) -> None:
    pid = guest.check("systemctl show -P MainPID kmodd").strip()
    guest.check("systemctl restart kmodd")
    assert guest.check("systemctl show -P MainPID kmodd").strip() != pid
    assert guest.check("readlink /run/udev/rules.d/80-drivers.rules").strip() == "/dev/null"
    assert plug(guest, DEVICES["ne2k_pci"]).faults() == []
    assert stranger_faults(guest.module_loads()) == []
