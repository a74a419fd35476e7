"""The package on a running machine: the kernel's and others' use of kernel.modprobe, the policy, upgrades, purge."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.faults import (
    appear,
    let_go,
    prepare_faults,
    record_of,
    settle_kmodd,
    state,
    until,
    until_state,
)
from tests.vm.image import Image
from tests.vm.journal import text
from tests.vm.machine import Machine
from tests.vm.packages import build, unpack
from tests.vm.payload import REPOSITORY, Payload, copy_into
from tests.vm.using import OURS, SETTING, STOCK, configure, prepare_using, unload, use

pytestmark = [pytest.mark.vm, pytest.mark.long, pytest.mark.timeout(1800)]

TESTS = REPOSITORY / "debian/tests"
IPTABLES = ("iptables", "libip4tc2", "libip6tc2", "libxtables12")
TABLE = "iptables-legacy --table nat --list"
#: A mount namespace with kmod's modprobe and no file of kmodd, as in a container.
CONTAINER = (
    "unshare --mount sh -euc 'mount -t tmpfs tmpfs /usr/lib/kmodd; mount -t tmpfs tmpfs /run/kmodd;"
    f" mount --bind /usr/bin/kmod /usr/sbin/modprobe; exec {TABLE}'"
)
#: Later than a test looks: a daemon that is killed stays away.
LATE = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestartSec=10min\nTimeoutStartSec=2min\n"
MINIX = "mount minix"
#: Verbs, tools and the kernel, one after the other until /run/end; failures to /run/failed.
CALLS = """
rm -f /run/end /run/ended /run/failed; : >/run/calls
while [ ! -e /run/end ]; do
    for call in 'kmodd status' 'kmodd --version' 'kmodd explain loop' '/usr/lib/kmodd/bin/modprobe kt_ten' \
        'modprobe --version' '/usr/lib/kmodd/bin/modprobe -r kt_ten' 'kmodd lookup platform:kt_late'; do
        $call >/run/said 2>&1 || { echo "$call"; cat /run/said; } >>/run/failed
        echo >>/run/calls
    done
done
: >/run/ended
"""
#: Files, links and diversions that the package changes, /run included. udev's own folder for rules may remain, empty.
LISTED = (
    "find /usr/sbin /usr/bin /usr/lib/kmodd /usr/lib/systemd/system /etc /run/udev/rules.d /run/kmodd /usr/share/doc"
    " ! -path '*/ld.so.cache' ! -path '/etc/kmodd*' ! -path /run/udev/rules.d -printf '%p %y %l %m\\n' 2>/dev/null"
    " | LC_ALL=C sort;"
    f" cat /var/lib/dpkg/diversions {SETTING}"
)


@pytest.fixture(scope="module")
def packages(image: Image, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two versions of the package."""
    return build(image.suite, tmp_path_factory.mktemp("packages"), "0.1.0", "0.1.1")


def _put(payload: Payload, packages: list[Path]) -> None:
    for name, package in zip(("kmodd.deb", "newer.deb"), packages, strict=True):
        payload.write(f"/root/{name}", package.read_bytes())
    payload.write("/etc/systemd/system/kmodd.service.d/late.conf", LATE)


def _install(machine: Machine, name: str) -> None:
    machine.check(f"export DPKG_FORCE=unsafe-io; dpkg --install /root/{name} 2>&1", 600)


def _setting(machine: Machine) -> str:
    return machine.check(f"cat {SETTING}").strip()


# ── in use ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def guest(image: Image, packages: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A stock machine on which the package is installed by dpkg, and enabled. /run/before is the machine without it."""
    payload = Payload.new(tmp_path_factory.mktemp("payload") / "root", with_kmod=True)
    prepare_using(payload, image)
    unpack(payload, image.suite, *IPTABLES)
    _put(payload, packages)
    with Machine(image, payload, name="the guest with the package") as machine:
        machine.wait_boot()
        machine.check(f"({LISTED}) >/run/before")
        _install(machine, "kmodd.deb")
        assert machine.run("systemctl is-enabled kmodd").output.strip() == "disabled"
        machine.check("systemctl enable --now kmodd", 120)
        settle_kmodd(machine)
        yield machine


def _lists_the_table(machine: Machine, command: str) -> bool:
    """Whether iptables-legacy works where the kernel has none of its modules."""
    names = ("iptable_nat", "ip_tables")
    unload(machine, [name for name in machine.modules() if name not in names])
    assert "ip_tables" not in machine.modules()
    ran = machine.run(command)
    print(ran.output)
    return ran.status == 0 and "Chain PREROUTING" in ran.output


def test_kernel_modprobe_keeps_its_value_for_all_mount_namespaces(guest: Machine) -> None:
    """iptables-legacy executes it. The control sets the value of `make install`, which in a container is missing."""
    assert guest.check("systemctl is-active kmodd").strip() == "active"
    assert _setting(guest) == STOCK
    assert _lists_the_table(guest, TABLE)
    assert _lists_the_table(guest, CONTAINER)
    guest.check(f"echo {OURS} >{SETTING}")
    assert _lists_the_table(guest, TABLE)
    assert not _lists_the_table(guest, CONTAINER)
    guest.check(f"echo {STOCK} >{SETTING}")


def _executed(machine: Machine) -> list[str]:
    """Programs that are executed for one request of the kernel, for minix."""
    machine.run("busybox rmmod minix")
    trace = "/sys/kernel/tracing/instances/executed"
    machine.check(f"mkdir -p {trace} && echo 1 >{trace}/events/sched/sched_process_exec/enable && : >{trace}/trace")
    assert use(machine, "root", MINIX).only != errno.ENODEV
    lines = machine.check(f"cat {trace}/trace").splitlines()
    names = [word.removeprefix("filename=") for line in lines for word in line.split() if word.startswith("filename=")]
    return [name for name in names if "modprobe" in name or "kmod" in name]


def test_a_request_costs_one_program_and_without_the_daemon_modprobe(guest: Machine) -> None:
    assert _executed(guest) == [STOCK]
    guest.check("systemctl stop kmodd")
    assert _executed(guest) == [STOCK, "/usr/sbin/modprobe.kmod"]
    guest.check("systemctl start kmodd")


def test_an_enforced_policy_ends_when_root_stops_kmodd_and_not_when_it_is_killed(guest: Machine) -> None:
    """As by `make install`: what is loaded is up to root, and a machine on which kmodd is stopped is as before."""
    configure(guest, "Policy=enforce")
    guest.run("busybox rmmod minix")
    guest.check("systemctl kill --kill-who=main --signal=KILL kmodd")
    until(lambda: "auto-restart" in guest.run("systemctl show -P SubState kmodd").output, 60.0, "kmodd has ended")
    assert use(guest, "root", MINIX).only == errno.ENODEV
    assert "the policy is enforced" in guest.check("dmesg")
    # systemd stops nothing where it waits for a restart, and queues a start until the restart (service_start).
    guest.check("systemctl restart kmodd", 120)
    guest.check("systemctl stop kmodd")
    assert use(guest, "root", MINIX).only != errno.ENODEV
    said = "The policy is no longer enforced"
    assert said in guest.check("journalctl --sync; journalctl -b -o cat -t kmodd -u kmodd")
    guest.check("systemctl start kmodd", 120)
    configure(guest, "Policy=off")


def test_purge_puts_everything_back_after_the_daemon_was_killed(guest: Machine) -> None:
    configure(guest, "Policy=enforce")
    guest.check("systemctl kill --kill-who=main --signal=KILL kmodd")
    guest.check("export DPKG_FORCE=unsafe-io; dpkg --purge kmodd 2>&1", 600)
    print(guest.run(f"({LISTED}) | diff /run/before -").output)
    guest.check(f"({LISTED}) | diff /run/before -")
    assert guest.run("systemctl list-units --no-legend 'kmodd*'").output == ""
    guest.run("busybox rmmod minix")
    assert use(guest, "root", MINIX).only != errno.ENODEV


# ── debian/tests ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def testbed(image: Image, packages: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A stock machine with the package installed, and its tests in /root/tests."""
    payload = Payload.new(tmp_path_factory.mktemp("payload") / "root", with_kmod=True)
    payload.write("/root/kmodd.deb", packages[0].read_bytes())
    copy_into(payload, TESTS, "/root/tests")
    with Machine(image, payload, name="the guest for debian/tests") as machine:
        machine.wait_boot()
        _install(machine, "kmodd.deb")
        yield machine


@pytest.mark.parametrize("name", re.findall(r"\w+", re.findall("Tests:(.*)", (TESTS / "control").read_text())[0]))
def test_autopkgtest(testbed: Machine, name: str) -> None:
    """A test of debian/tests passes: status 0, nothing on standard error. Without the package it does not."""
    run = f"cd /root && tests/{name} 2>/run/errors"
    ran = testbed.run(run, 300)
    assert (ran.status, testbed.check("cat /run/errors")) == (0, ""), ran.output
    testbed.check("mv /usr/lib/kmodd /usr/lib/moved")
    assert testbed.run(run, 300).status != 0
    testbed.check("mv /usr/lib/moved /usr/lib/kmodd; systemctl disable --now kmodd")


# ── upgrades ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def busy(image: Image, packages: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """`make install` on a stock machine; a module hangs in its init, another one was removed by an operator."""
    payload = Payload.new(tmp_path_factory.mktemp("payload") / "root", with_kmod=True)
    payload.install_kmodd(image.suite)
    prepare_faults(payload, image)
    payload.write("/etc/modprobe.d/slow.conf", "options kt_slow seconds=3000\n")
    payload.write("/root/calls", CALLS)
    _put(payload, packages)
    with Machine(image, payload, name="the guest with make install") as machine:
        machine.wait_boot()
        settle_kmodd(machine)
        mark = machine.journal.mark()
        appear(machine, "kt_plain")
        record_of(machine, "kt_plain", "loaded", mark)
        machine.check("/usr/lib/kmodd/bin/modprobe -r kt_plain")
        appear(machine, "kt_slow")
        until_state(machine, "kt_slow", "Loading")
        yield machine


@pytest.mark.parametrize("name", ["kmodd.deb", "newer.deb"])
def test_an_upgrade_under_a_running_daemon(busy: Machine, name: str) -> None:
    """From `make install` and from a package: all calls work, the hanging module lives on and is adopted."""
    before = busy.check("systemctl show -P MainPID kmodd").strip()
    busy.check("sh /root/calls </dev/null >/dev/null 2>&1 &")
    until(lambda: busy.run("wc -l </run/calls").output.strip() not in ("", "0", "1"), 120.0, "calls")
    _install(busy, name)
    busy.check("touch /run/end")
    until(lambda: busy.run("test -e /run/ended").status == 0, 120.0, "the last call has ended")
    print(busy.run("cat /run/failed; wc -l /run/calls").output)
    assert busy.run("cat /run/failed 2>/dev/null").output == ""
    after = busy.check("systemctl show -P MainPID kmodd").strip()
    assert after not in ("0", before)
    settle_kmodd(busy)
    assert state(busy, "kt_slow") == "Loading"
    adopted = "Module kt_slow was already being loaded when kmodd started"
    assert adopted in busy.check(f"journalctl --sync; journalctl -b -o cat _PID={after}")
    assert state(busy, "kt_plain") == "", "what an operator removed stays removed"
    assert _setting(busy) == STOCK
    assert busy.check("dpkg --verify kmodd") == ""


def test_the_hanging_module_ends_under_the_newest_daemon(busy: Machine) -> None:
    mark = busy.mark()
    let_go(busy)
    until_state(busy, "kt_slow", "Live")
    record = record_of(busy, "kt_slow", "loaded", mark)
    assert text(record, "KMODD_MODULE") == "kt_slow"
