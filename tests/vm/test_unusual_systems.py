"""Systems that lack what most have: systemd, udevd, tracefs, a merged /usr, a writable root, modules from the start.

One guest lacks all of it, as an appliance or a rescue system may: each test is about what the one before it left.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.vm.devices import DEVICES
from tests.vm.faults import MODPROBE, settle_kmodd, state, status, until, until_state
from tests.vm.image import Image
from tests.vm.machine import Machine
from tests.vm.payload import Payload

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

_INIT: Final = """\
#!/bin/busybox sh
b=/bin/busybox
$b mount -t tmpfs -o mode=755 tmpfs /run
$b umount /sys/kernel/tracing
$b mount -t tmpfs -o ro tmpfs /sys/kernel/tracing
$b mount -o remount,ro /
while :; do $b setsid /usr/lib/vm-shell; done &
while :; do wait; $b sleep 1; done
"""

_NOT_MERGED: Final = """\
b=/usr/bin/busybox; $b rm /lib && $b mkdir /lib && $b mkdir /lib/modprobe.d && $b mv /usr/lib/modules /srv/ && \
$b mkdir /usr/lib/modules && for f in /usr/lib/*; do n=${f##*/}; [ -e /lib/$n ] || $b ln -s $f /lib/$n; done && \
$b rm /lib/modules && $b mkdir -p /srv/newer/9.9.9/kernel && : >/srv/newer/9.9.9/modules.dep && \
echo "install ne2k_pci id -u >/run/by-command && MODPROBE --ignore-install ne2k_pci" >/lib/modprobe.d/card.conf\
""".replace("MODPROBE", MODPROBE)

_HELD: Final = """\
install 8139cp echo $$ >/run/held; while ! [ -e /run/go ]; do busybox sleep 0.2; done; \
MODPROBE --ignore-install 8139cp; echo at last; exit 5
""".replace("MODPROBE", MODPROBE)

_START: Final = "setsid /usr/bin/kmodd run </dev/null >>/run/said 2>&1 &"
_SET_HELPER: Final = "echo /sbin/modprobe >/proc/sys/kernel/modprobe; /usr/lib/kmodd/kernel-helper set"


@pytest.fixture(scope="module")
def guest(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    payload = Payload.new(Path(tmp_path_factory.mktemp("payload"), "root"))
    payload.install_kmodd(image.suite)
    payload.remove.append("/usr/sbin/init")
    payload.write("/usr/sbin/init", _INIT, 0o755)
    payload.write("/etc/modules-load.d/boot.conf", "dummy\n")
    payload.commands.append(_NOT_MERGED)
    with Machine(image, payload, name="the guest without systemd and udevd") as machine:
        yield machine


def _start(machine: Machine) -> None:
    machine.check(_START)
    until(lambda: machine.run("kmodd status", 60).status == 0, 120.0, "the daemon answers")


def _stop(machine: Machine) -> None:
    machine.check("busybox kill $(pgrep -o -f 'bin/kmodd run')")
    until(lambda: machine.run("test -e /run/kmodd/io.kmodd").status != 0, 60.0, "the daemon has ended")


def _mount(machine: Machine, source: str) -> None:
    machine.check(f"busybox mount -o bind {source} /usr/lib/modules")


def test_the_guest_lacks_what_it_is_to_lack(guest: Machine) -> None:
    """The control of all that follows."""
    for path in ("/run/systemd", "/run/udev", "/lib/modules", "/sys/kernel/tracing/instances", "/sbin/modprobe"):
        assert guest.run(f"test -e {path}").status == 1, path
    assert guest.run("test -L /lib").status == 1
    assert "Read-only file system" in guest.run("busybox touch /new").output
    assert guest.check("busybox ls /usr/lib/modules") == ""


def test_modules_of_a_late_mount_are_loaded(guest: Machine) -> None:
    """The daemon runs before there are modules, which then lie in /usr/lib/modules alone."""
    guest.plug(DEVICES["virtio-rng-pci"])
    _start(guest)
    assert f"no module tree for the running kernel {guest.image.release}" in str(status(guest)["problems"])
    assert state(guest, "virtio_rng") == ""
    _mount(guest, "/srv/modules")
    until_state(guest, "virtio_rng", "Live", 180.0)
    until_state(guest, "dummy", "Live", 180.0)  # of the boot list
    settle_kmodd(guest)
    assert "no module tree" not in str(status(guest)["problems"])


def test_devices_and_commands_need_no_systemd(guest: Machine) -> None:
    """Plugged in; the second has an install line in /lib/modprobe.d, which /usr/lib/modprobe.d does not hide."""
    guest.plug(DEVICES["e1000e"])
    guest.plug(DEVICES["ne2k_pci"])
    until_state(guest, "e1000e", "Live", 180.0)
    until_state(guest, "ne2k_pci", "Live", 180.0)
    settle_kmodd(guest)
    assert guest.check("busybox cat /run/by-command") == "0\n"


def _outlives(machine: Machine, signal: str, already_told: int) -> None:
    """End the daemon while its command runs; the command loads its module, and its end is on record."""
    told = "After kmodd had ended: 8139cp: install command of /run/modprobe.d/held.conf:1 exited with status 5: at last"
    count = f"busybox grep -c '{told}' /run/said"
    until(lambda: machine.run("test -s /run/held").status == 0, 120.0, "the command has begun")
    daemon = machine.check("pgrep -o -f 'bin/kmodd run'").split()[0]
    machine.check(f"busybox kill -{signal} {daemon}")
    until(lambda: machine.run(f"busybox kill -0 {daemon}").status != 0, 60.0, "the daemon has ended")
    machine.check("busybox kill -0 $(busybox cat /run/held)")
    assert state(machine, "8139cp") == ""
    machine.check("busybox touch /run/go")
    until_state(machine, "8139cp", "Live")
    until(lambda: machine.run(count).output.strip() == str(already_told + 1), 60.0, told)


def test_a_command_outlives_a_daemon_that_is_stopped_or_killed(guest: Machine) -> None:
    """The next daemon runs it again, for the same device, whose module was removed."""
    guest.check(f"mkdir -p /run/modprobe.d; cat >/run/modprobe.d/held.conf <<'END'\n{_HELD}END")
    guest.check("kmodd reload")
    guest.plug(DEVICES["rtl8139"])
    for number, signal in enumerate(("TERM", "KILL")):
        _outlives(guest, signal, number)
        guest.check("busybox rm /run/go /run/held; busybox rmmod 8139cp")
        _start(guest)
    guest.check("busybox touch /run/go")
    until_state(guest, "8139cp", "Live", 120.0)
    settle_kmodd(guest)


def test_the_kernels_requests_need_no_tracefs(guest: Machine) -> None:
    """kernel-helper sets kmodd's helper by hand; the control: without it, the same mount asks in vain."""
    assert guest.run("busybox mount -t minix none /mnt").status != 0
    assert state(guest, "minix") == ""
    guest.check(_SET_HELPER)
    guest.run("busybox mount -t minix none /mnt")
    assert state(guest, "minix") == "Live"


def test_the_kernel_is_upgraded_under_the_running_one(guest: Machine) -> None:
    """Only another kernel's tree is there: daemon, tools and a restarted daemon say it, and nothing is tried."""
    words = f"no module tree for the running kernel {guest.image.release}"
    guest.check("busybox umount /usr/lib/modules")
    _mount(guest, "/srv/newer")
    guest.plug(DEVICES["pcnet"])
    until(lambda: words in str(status(guest)["problems"]), 60.0, "status says it")
    _stop(guest)
    _start(guest)
    assert words in str(status(guest)["problems"])
    answer = guest.run(f"{MODPROBE} pcnet32", 60)
    assert (answer.status, guest.image.release in answer.output) == (1, True), answer.output
    assert state(guest, "pcnet32") == ""
    assert guest.check(f"busybox grep -c '{words}' /run/said").strip() == "3", guest.check("cat /run/said")
    guest.check("busybox umount /usr/lib/modules")
    _mount(guest, "/srv/modules")
    until_state(guest, "pcnet32", "Live", 180.0)
