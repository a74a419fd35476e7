"""A machine without memory: what of kmodd goes on, and what is tried again."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.vm.faults import (
    appear,
    given_to_kernel,
    prepare_faults,
    record_of,
    settle_kmodd,
    until,
    until_state,
    vanish,
    without_udevd,
)
from tests.vm.image import Image
from tests.vm.machine import Machine
from tests.vm.payload import Payload

pytestmark = [pytest.mark.vm, pytest.mark.long, pytest.mark.timeout(3600)]

OPTIONS = "/etc/modprobe.d/refuse.conf"
#: A process that takes 600 MiB, most of what programs of the guest use, and keeps them.
HOG = """
import time
taken = b"x" * (600 << 20)
open("/run/taken", "w").close()
time.sleep(3600)
"""
BUS = "/sys/module/kt_bus/parameters"
NAMES = ("kt_plain", "kt_late", "kt_unknown")


@pytest.fixture(scope="module")
def guest(image: Image, boot: Callable[..., AbstractContextManager[Machine]]) -> Iterator[Machine]:
    def prepare(payload: Payload) -> None:
        prepare_faults(payload, image, conf="StuckAfterSec=600\n")
        without_udevd(payload)
        payload.write("/root/hog.py", HOG)

    with boot("the guest without memory", prepare=prepare) as machine:
        yield machine


def _pid(machine: Machine) -> str:
    return machine.check("systemctl show -P MainPID kmodd").strip()


def _kills(machine: Machine) -> int:
    return int(machine.check("dmesg | busybox grep -c 'Out of memory' || true", 120))


def _have_a_process_killed(machine: Machine) -> None:
    """Have the kernel kill a process, as without memory, while devices appear; all of them are served.

    Alt-SysRq-f: the kernel chooses as it does without memory (Documentation/admin-guide/sysrq.rst). Where all of it is
    really taken, the kernel first drops the pages of all programs, and no command ends for half an hour.
    """
    before = _kills(machine)
    # In a unit of its own, as systemd ends the whole unit of a process that is killed (OOMPolicy=).
    machine.check("rm -f /run/taken; systemd-run --quiet --collect --unit=hog python3 /root/hog.py")
    until(lambda: machine.run("test -e /run/taken").status == 0, 300.0, "a process has taken memory")
    devices = "; ".join(f"echo {name} 3 >{BUS}/add" for name in NAMES)
    machine.check(f"{devices}; echo f >/proc/sysrq-trigger", 120)
    until(lambda: _kills(machine) == before + 1, 120.0, "the kernel kills")
    for name in NAMES:
        until_state(machine, name, "Live", 180.0)
    machine.run("systemctl stop hog")


def _take_away(machine: Machine) -> None:
    for name in NAMES:
        vanish(machine, name)
    settle_kmodd(machine)
    machine.remove_module(*reversed(NAMES))  # kt_unknown needs kt_late


def test_daemon_and_spawner_live_on(guest: Machine) -> None:
    """OOMScoreAdjust= of kmodd.service: the kernel kills the process that took the memory."""
    before = _pid(guest), guest.check("pgrep -x kmodd-spawner")
    _have_a_process_killed(guest)
    assert "(python3)" in guest.check("dmesg | busybox grep 'Out of memory: Killed'")
    assert (_pid(guest), guest.check("pgrep -x kmodd-spawner")) == before
    _take_away(guest)


def test_a_daemon_that_is_killed_for_its_memory_is_started_again(guest: Machine) -> None:
    """The control: with the highest score it is the process to be killed. No device is lost."""
    before = _pid(guest)
    guest.check(f"echo 1000 >/proc/{before}/oom_score_adj")
    _have_a_process_killed(guest)
    until(lambda: guest.run("kmodd settle", 130).status == 0, 180.0, "a daemon is ready")
    assert _pid(guest) != before
    assert f"Killed process {before} (" in guest.check("dmesg | busybox grep 'Out of memory'")
    _take_away(guest)


@pytest.mark.parametrize(("number", "tries"), [(errno.ENODEV, 1), (errno.ENOMEM, 2)])
def test_a_module_whose_init_lacks_memory_is_tried_again(guest: Machine, number: int, tries: int) -> None:
    """The control is ENODEV, after which nothing is tried."""
    guest.check(f"echo options kt_refuse errno={number:d} >{OPTIONS}; systemctl reload kmodd")
    mark, before = guest.journal.mark(), given_to_kernel(guest, "kt_refuse")
    appear(guest, "kt_refuse")
    record_of(guest, "kt_refuse", "failed", mark)
    until(lambda: given_to_kernel(guest, "kt_refuse") >= before + tries, 60.0, f"tried {tries} times")
    settle_kmodd(guest)
    assert tries > 1 or given_to_kernel(guest, "kt_refuse") == before + 1
    vanish(guest, "kt_refuse")
    guest.check(f"rm {OPTIONS}; systemctl reload kmodd")
