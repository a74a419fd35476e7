"""Nothing is lost: whatever ends or blinds the daemon, each device present gets its driver.

One guest; moments are drawn (the run's head names the seed).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from tests.vm.devices import DEVICES
from tests.vm.faults import (
    appear,
    given_to_kernel,
    prepare_faults,
    record_of,
    restart,
    settle_kmodd,
    state,
    status,
    until,
    until_said,
    until_state,
    vanish,
    without_udevd,
)
from tests.vm.image import Image
from tests.vm.journal import text
from tests.vm.machine import Machine
from tests.vm.payload import Payload

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

_SOUND = ("kt_late", "kt_unknown", "kt_plain")
"""Modules of ours that drive a device of kt_bus and go again; kt_unknown needs kt_late."""

_PCI = ("e1000e", "virtio-rng-pci", "ne2k_pci", "vmxnet3")


@pytest.fixture(scope="module")
def guest(image: Image, boot: Callable[..., AbstractContextManager[Machine]]) -> Iterator[Machine]:
    def prepare(payload: Payload) -> None:
        prepare_faults(payload, image)
        without_udevd(payload)

    with boot("the guest that loses nothing", prepare=prepare) as machine:
        yield machine


def _all_live(machine: Machine, modules: tuple[str, ...], timeout: float = 120.0) -> None:
    for module in modules:
        until_state(machine, module, "Live", timeout)


def _take_away(machine: Machine) -> None:
    """Unload ours, so that the next round has to load them again."""
    for name in _SOUND:
        vanish(machine, name)
    settle_kmodd(machine)
    machine.remove_module("kt_plain", "kt_unknown", "kt_late")


def _kill(machine: Machine) -> None:
    # it may have no process just now, from the kill before
    machine.run("systemctl reset-failed kmodd; systemctl kill --signal=KILL --kill-who=main kmodd")


@contextmanager
def _unit_with(machine: Machine, line: str) -> Iterator[None]:
    """The daemon runs with one more line in its unit, then without it again."""
    folder = "/run/systemd/system/kmodd.service.d"
    machine.check(f"mkdir -p {folder} && printf '[Service]\\n{line}\\n' >{folder}/test.conf && systemctl daemon-reload")
    restart(machine)
    settle_kmodd(machine)
    try:
        yield
    finally:
        machine.check(f"rm {folder}/test.conf; systemctl daemon-reload")
        restart(machine)
        settle_kmodd(machine)


@pytest.mark.long
def test_killed_at_random_moments_while_devices_come(guest: Machine, rng: random.Random) -> None:
    loads = {name: given_to_kernel(guest, name) for name in _SOUND}
    for round_number, name in enumerate(_PCI):
        guest.plug(DEVICES[name])
        for module in rng.sample(_SOUND, len(_SOUND)):
            appear(guest, module, rng.randrange(1, 20))
            if rng.random() < 0.6:
                time.sleep(rng.uniform(0.0, 1.0))
                _kill(guest)
        _all_live(guest, (DEVICES[name].module, *_SOUND))
        until(lambda: guest.run("kmodd settle", 60).status == 0, 120.0, "the daemon is there again")
        assert {module: given_to_kernel(guest, module) - loads[module] for module in _SOUND} == dict.fromkeys(
            _SOUND, round_number + 1
        )
        _take_away(guest)
    assert int(guest.check("systemctl show -P NRestarts kmodd")) > 0, "the seed killed nothing"


@pytest.mark.long
def test_an_event_during_a_restart_is_replayed(guest: Machine) -> None:
    """Stopped, not restarted by itself: what came meanwhile is found at the start."""
    guest.check("systemctl stop kmodd")
    appear(guest, "kt_plain")
    assert state(guest, "kt_plain") == ""
    guest.check("systemctl start kmodd", 90)
    until_state(guest, "kt_plain", "Live")
    settle_kmodd(guest)


@pytest.mark.long
def test_an_overflow_is_made_up_for(guest: Machine) -> None:
    """Without CAP_NET_ADMIN the buffer is as small as the system allows; the daemon sleeps while it runs over."""
    vanish(guest, "kt_plain")
    settle_kmodd(guest)
    guest.remove_module("kt_plain")
    with _unit_with(guest, "CapabilityBoundingSet="):
        guest.check("systemctl kill --signal=STOP --kill-who=main kmodd")
        appear(guest, "no_module_matches", 1000)
        appear(guest, "kt_plain")
        guest.check("systemctl kill --signal=CONT --kill-who=main kmodd")
        until_state(guest, "kt_plain", "Live")
        assert status(guest)["overruns"] > 0, "no event was lost: the test shows nothing"
        vanish(guest, "no_module_matches")


@pytest.mark.long
def test_a_storm_of_reloads(guest: Machine, rng: random.Random) -> None:
    pid = guest.check("systemctl show -P MainPID kmodd").strip()
    vanish(guest, "kt_plain")
    settle_kmodd(guest)
    guest.remove_module("kt_plain")
    storm = "n=0; while [ $n -lt 100 ]; do kill -HUP {pid}; echo '# '$n >/etc/modprobe.d/storm.conf; n=$((n+1)); done"
    guest.check(storm.format(pid=pid) + " >/dev/null 2>&1 &")
    for module in rng.sample(_SOUND, len(_SOUND)):
        appear(guest, module, 3)
    guest.plug(DEVICES["rtl8139"])
    _all_live(guest, (*_SOUND, "8139cp"))
    settle_kmodd(guest)
    assert guest.check("systemctl show -P MainPID kmodd").strip() == pid
    _take_away(guest)


@pytest.mark.long
def test_a_restart_during_coldplug(guest: Machine) -> None:
    """Four modules less than the devices want, and three restarts in a row."""
    for name in _SOUND:
        appear(guest, name)
    _all_live(guest, _SOUND)
    settle_kmodd(guest)
    guest.check("systemctl stop kmodd")
    guest.remove_module("kt_plain", "kt_unknown", "kt_late")
    for name in _SOUND:  # not removed by hand for kmodd: the devices are plugged in again
        vanish(guest, name)
        appear(guest, name, 5)
    guest.check("systemctl reset-failed kmodd; systemctl start --no-block kmodd")
    for _ in range(2):
        guest.check("systemctl reset-failed kmodd; systemctl restart --no-block kmodd; busybox sleep 1")
    _all_live(guest, _SOUND)
    until(lambda: guest.run("kmodd settle", 60).status == 0, 120.0, "the daemon is there again")


# ── reload is all or nothing ───────────────────────────────────────────────────────────────────────────────────────


def test_a_damaged_index_keeps_the_old_one(guest: Machine) -> None:
    mark = guest.journal.mark()
    tree = f"/usr/lib/modules/{guest.image.release}"
    guest.check(
        f"cp -a {tree}/modules.alias.bin /root/ && echo rubbish >{tree}/new && mv {tree}/new {tree}/modules.alias.bin"
    )
    try:
        guest.plug(DEVICES["tulip"])
        until_state(guest, "tulip", "Live")
        guest.journal.wait_for(lambda each: "modules.alias.bin" in text(each, "MESSAGE"), 60.0, mark)
    finally:
        guest.check(f"mv /root/modules.alias.bin {tree}/")
    guest.plug(DEVICES["pcnet"])
    until_state(guest, "pcnet32", "Live")


@pytest.mark.long
def test_a_broken_configuration_is_named_with_its_line_and_the_old_one_holds(guest: Machine) -> None:
    guest.check("mkdir -p /etc/kmodd")
    guest.check("printf '[Kmodd]\\nStuckAfterSec=50\\n' >/etc/kmodd/kmodd.conf; systemctl reload kmodd")
    mark = guest.journal.mark()
    guest.check("printf '[Kmodd]\\n\\nStuckAfterSec=soon\\n' >/etc/kmodd/kmodd.conf; systemctl reload kmodd || true")
    until_said(guest, "/etc/kmodd/kmodd.conf:3")
    appear(guest, "kt_plain")
    record_of(guest, "kt_plain", "live", mark, 120.0)
    guest.check("rm /etc/kmodd/kmodd.conf; systemctl reload kmodd")


# ── less than a whole machine ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("line", "word"),
    [("ReadWritePaths=", "Read-only file system"), ("InaccessiblePaths=/proc/modules", "/proc/modules")],
)
def test_what_is_missing_is_said_and_the_rest_works(guest: Machine, line: str, word: str) -> None:
    settle_kmodd(guest)
    vanish(guest, "kt_plain")
    settle_kmodd(guest)
    guest.run("busybox rmmod kt_plain")
    with _unit_with(guest, line):
        until_said(guest, word)
        appear(guest, "kt_plain")
        until_state(guest, "kt_plain", "Live")


# ── a journald that does not read ──────────────────────────────────────────────────────────────────────────────────


def _told_lost(machine: Machine) -> int:
    """How many lost records were told of, whether at once or as they grew more."""
    words = "records lost while journald did not read"
    found = machine.check(f"journalctl -b -o cat -t kmodd | {{ busybox grep -F '{words}' || true; }}")
    return sum(int(line.split()[0]) for line in found.splitlines())


@pytest.mark.long
def test_a_stopped_journald_stops_nothing_and_the_lost_records_are_counted(guest: Machine) -> None:
    """More records than are kept, while journald sleeps; then it gets their count.

    The last test: its devices stay, and every start of the daemon would take twenty seconds more for them.
    """
    vanish(guest, "kt_plain")
    settle_kmodd(guest)
    guest.remove_module("kt_plain")
    guest.check("udevadm control --stop-exec-queue")  # it would take minutes for these devices
    guest.check("systemctl kill --signal=STOP systemd-journald")
    try:
        bus = "/sys/module/kt_bus/parameters/add"
        guest.check(f"n=0; while [ $n -lt 5000 ]; do echo flood$n >{bus}; n=$((n+1)); done", 300)
        appear(guest, "kt_plain")
        until_state(guest, "kt_plain", "Live", 300.0)
        lost = status(guest)["records_lost"]
        assert lost > 0, "too few records to show anything"
    finally:
        guest.check("systemctl kill --signal=CONT systemd-journald; udevadm control --start-exec-queue")
    until(lambda: _told_lost(guest) >= lost, 300.0, f"the record of {lost} lost records")
