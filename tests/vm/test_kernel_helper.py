"""kmodd-request and kernel.modprobe while kmodd comes, stands still, dies and goes: a real kernel, a stock machine.

In mode off and observe the real modprobe takes over without kmodd's answer; an enforced policy refuses.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.vm.faults import let_go, settle_kmodd, state, until, until_state
from tests.vm.image import Image
from tests.vm.machine import Machine
from tests.vm.payload import Payload
from tests.vm.using import OURS, SETTING, STOCK, asked, command_of, configure, prepare_using, use, used_of

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

DROP_IN = "/run/systemd/system/kmodd.service.d"
#: So late that a test sees the time between; as often as the tests want.
LATE = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestartSec=30s\n"
LIMIT = "StartLimitIntervalSec=5min\\nStartLimitBurst=2\\n"
BROKEN = f"[Unit]\\n{LIMIT}[Service]\\nRestartSec=200ms\\nExecStart=\\nExecStart=/bin/false\\n"
TOLD = "requests for modules are refused"
WAITED = 30.0  # seconds after which it would be the watchdog that ended the wait, or the next start

_KILL = "systemctl kill --kill-who=main"
UNKNOWN, SLOW, MINIX = "socket 9 2 0", "socket 25 2 0", "mount minix"


@pytest.fixture(scope="module")
def guest(image: Image, boot: Callable[..., AbstractContextManager[Machine]]) -> Iterator[Machine]:
    """kmodd on a stock machine, with Debian's modprobe."""

    def prepare(payload: Payload) -> None:
        prepare_using(payload, image, aliases=("net-pf-25 kt_slow",))
        payload.write("/etc/modprobe.d/slow.conf", "options kt_slow seconds=300\n")
        payload.write("/etc/systemd/system/kmodd.service.d/late.conf", LATE)

    with boot("the guest whose daemon fails", with_kmod=True, prepare=prepare) as machine:
        yield machine


def _wait_for(machine: Machine, command: str, timeout: float = 120.0) -> None:
    until(lambda: machine.run(command).status == 0, timeout, command)


def _setting(machine: Machine) -> str:
    return machine.check(f"cat {SETTING}").strip()


def _told(machine: Machine) -> int:
    """How often it was said that requests are refused from now on."""
    return machine.check("journalctl --sync && journalctl -b -o cat -t kmodd").count(TOLD)


def _refusals(machine: Machine) -> list[tuple[str, str]]:
    """What kmodd-request has written to the kernel's log: the name, and why."""
    found = re.finditer(r"kmodd-request: (\S+) refused: (.*)", machine.check("dmesg"))
    return [(each[1], each[2]) for each in found]


def _signal(machine: Machine, name: str) -> None:
    machine.check(f"{_KILL} --signal={name} kmodd")


def _who_loaded(machine: Machine, module: str) -> list[str]:
    """The tasks that gave it to the kernel."""
    return [load.comm for load in machine.module_loads() if load.module == module]


def _mode(machine: Machine, mode: str) -> None:
    """That mode, and minix is not there."""
    configure(machine, f"Policy={mode}")
    machine.run("busybox rmmod minix")
    assert "minix" not in machine.modules()


def _as_before(machine: Machine) -> None:
    """kmodd runs, and serves."""
    machine.run("systemctl stop kmodd")
    machine.check("systemctl start kmodd")
    settle_kmodd(machine)
    assert _setting(machine) == OURS


#: What fails → how that comes about, and how it ends.
FAILURES = {
    "stands still": (f"{_KILL} --signal=STOP kmodd", f"{_KILL} --signal=CONT kmodd"),
    "has no socket": ("mv /run/kmodd/request /run/kmodd/moved", "mv /run/kmodd/moved /run/kmodd/request"),
    # A start alone would wait for RestartSec= to be over.
    "is killed": (f"{_KILL} --signal=KILL kmodd", "systemctl stop kmodd; systemctl start kmodd"),
}


def test_the_kernel_asks_through_it_and_goes_by_its_answer(guest: Machine) -> None:
    """Control of the tests below: kmodd loads a known module, and an unknown one stays unknown."""
    assert _setting(guest) == OURS
    mark = guest.journal.mark()
    used = use(guest, "root", MINIX, UNKNOWN)
    asked(guest, "minix", "loaded", mark)
    assert _who_loaded(guest, "minix") == ["kmodd-loader"]
    assert used.errno[UNKNOWN] == errno.EAFNOSUPPORT
    assert _refusals(guest) == []


@pytest.mark.parametrize(
    ("mode", "failure"),
    [
        *(("enforce", failure) for failure in FAILURES),
        ("off", "stands still"), ("off", "is killed"), ("observe", "has no socket"),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in [("off", "has no socket"), ("observe", "stands still"), ("observe", "is killed")]
        ),
    ],
)  # fmt: skip
def test_without_an_answer_modprobe_loads_or_the_request_is_refused(guest: Machine, mode: str, failure: str) -> None:
    _mode(guest, mode)
    loads, refusals = len(_who_loaded(guest, "minix")), len(_refusals(guest))
    # In one command, so that a daemon that stands still is not yet ended by its watchdog, nor a dead one started again.
    begin, end = FAILURES[failure]
    used = used_of(guest.check(f"{begin}; {command_of('root', [MINIX])}"))
    is_loaded = "minix" in guest.modules()
    print(f"{mode}, the daemon {failure}: {used.seconds[MINIX]:.2f} s")
    if mode == "enforce":
        assert (used.only, is_loaded) == (errno.ENODEV, False)
        refused = ("fs-minix", "the daemon does not answer and the policy is enforced")
        assert _refusals(guest)[refusals:] == [refused]
    else:
        assert used.only != errno.ENODEV
        assert _who_loaded(guest, "minix")[loads:] == ["modprobe"]
        assert _refusals(guest)[refusals:] == []
    # Twice ACCEPT_LIMIT of kmodd-request.c, for a place in the queue and for the answer; the rest is a slow machine's.
    assert used.seconds[MINIX] < WAITED
    guest.check(end)
    mark = guest.journal.mark()
    guest.run("busybox rmmod minix")
    use(guest, "root", MINIX)
    asked(guest, "minix", "loaded", mark)  # it serves again


@pytest.mark.parametrize("mode", [pytest.param("off", marks=pytest.mark.long), "enforce"])
def test_a_daemon_that_stands_still_with_a_request_is_ended_by_its_watchdog(guest: Machine, mode: str) -> None:
    """Accepted is accepted: there is no limit but WatchdogSec=. Then modprobe waits for the start that goes on."""
    _mode(guest, mode)
    guest.check(f"mkdir -p {DROP_IN}; printf '[Service]\\nWatchdogSec=20s\\n' >{DROP_IN}/watchdog.conf")
    guest.check("systemctl daemon-reload")
    _as_before(guest)
    guest.run("busybox rmmod kt_slow")
    refusals = len(_refusals(guest))
    guest.check(
        f"rm -f /run/used; ({command_of('root', [SLOW])} >/run/used.new; mv /run/used.new /run/used) </dev/null &"
    )
    until_state(guest, "kt_slow", "Loading")
    stopped = time.monotonic()
    _signal(guest, "STOP")
    _wait_for(guest, "test -e /run/used" if mode == "enforce" else "busybox pidof modprobe")
    print(f"{mode}: {time.monotonic() - stopped:.1f} s after the daemon stood still, WatchdogSec=20s")
    assert state(guest, "kt_slow") == "Loading"
    assert (guest.run("test -e /run/used").status == 0) == (mode == "enforce")
    let_go(guest)
    _wait_for(guest, "test -e /run/used")
    until_state(guest, "kt_slow", "Live")
    refused = [("net-pf-25", "the daemon does not answer and the policy is enforced")]
    assert _refusals(guest)[refusals:] == (refused if mode == "enforce" else [])
    assert "watchdog" in guest.check("journalctl --no-pager -b -o cat -u kmodd | tail -n 40").lower()
    guest.check(f"rm {DROP_IN}/watchdog.conf; systemctl daemon-reload")
    _as_before(guest)


def test_it_is_set_while_kmodd_runs_and_put_back_when_it_ends(guest: Machine) -> None:
    _mode(guest, "off")
    assert _setting(guest) == OURS
    _signal(guest, "KILL")
    _wait_for(guest, "systemctl show --property=SubState kmodd | grep -q auto-restart")
    assert _setting(guest) == STOCK
    _wait_for(guest, "systemctl is-active --quiet kmodd")
    assert _setting(guest) == OURS
    guest.check("systemctl stop kmodd")
    assert _setting(guest) == STOCK
    assert use(guest, "root", MINIX).only != errno.ENODEV
    guest.check("systemctl start kmodd")
    assert _setting(guest) == OURS


def test_under_an_enforced_policy_neither_crash_nor_restart_leaves_a_gap(guest: Machine) -> None:
    _mode(guest, "enforce")
    before = _told(guest)
    guest.check("systemctl restart kmodd")
    assert (_setting(guest), _told(guest)) == (OURS, before + 1)
    guest.check(f"mkdir -p {DROP_IN}; printf '{BROKEN}' >{DROP_IN}/zz-broken.conf")
    guest.check("systemctl daemon-reload")
    _signal(guest, "KILL")
    _wait_for(guest, "systemctl is-failed --quiet kmodd")
    _wait_for(guest, "systemctl show --property=ExecMainExitTimestampMonotonic kmodd-restore-udev | grep -q '=[1-9]'")
    assert _setting(guest) == OURS
    assert use(guest, "root", MINIX).only == errno.ENODEV
    guest.check(f"rm {DROP_IN}/zz-broken.conf; systemctl daemon-reload; systemctl reset-failed kmodd")
    guest.check("systemctl start kmodd")
    assert use(guest, "root", MINIX).only != errno.ENODEV
    guest.check("systemctl stop kmodd")
    assert _setting(guest) == STOCK
