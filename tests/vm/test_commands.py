"""Install commands that the daemon has run, on a real machine: as under udevd, and whatever becomes of the daemon."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.vm.devices import DEVICES
from tests.vm.faults import appear, prepare_faults, record_of, settle_kmodd, until, until_state, vanish
from tests.vm.image import Image
from tests.vm.journal import text
from tests.vm.machine import Machine
from tests.vm.payload import Payload

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

OURS = "/usr/lib/kmodd/bin"
PCNET = (
    'install pcnet32 /bin/sh -c "id > /var/tmp/mark; echo 1 > /proc/sys/kernel/printk_delay; mkdir -p /run/flag; '
    '/sbin/modprobe --ignore-install pcnet32"\n'
)
HELD = (
    "install kt_plain echo $$ >/run/pid; while ! [ -e /run/go ]; do busybox sleep 0.2; done; "
    "/sbin/modprobe --ignore-install kt_plain; echo at last; exit 5\n"
)


@pytest.fixture(scope="module")
def guest(image: Image, boot: Callable[..., AbstractContextManager[Machine]]) -> Iterator[Machine]:
    def prepare(payload: Payload) -> None:
        prepare_faults(payload, image, conf="StuckAfterSec=10min\n")  # what waits for itself does so to the end
        payload.write("/etc/modprobe.d/pcnet.conf", PCNET)

    with boot("the guest with install commands", with_kmod=True, prepare=prepare) as machine:
        yield machine


def configure(machine: Machine, line: str) -> None:
    """Have one install line of the test's own; kt_plain and what it needs are not loaded."""
    machine.check("rm -f /run/go /run/pid")
    machine.check("for m in kt_nest kt_plain dummy; do busybox rmmod $m 2>/dev/null; done; true")
    machine.check(f"cat > /etc/modprobe.d/test.conf <<'END'\n{line}END")
    machine.check("systemctl stop kmodd; systemctl reset-failed kmodd; systemctl start kmodd", 120)


def test_a_command_for_a_device_runs_as_under_udevd(guest: Machine) -> None:
    """It writes below /var and /run, sets a sysctl and loads the module, all before that is on record."""
    mark = guest.mark()
    guest.plug(DEVICES["pcnet"])
    record = record_of(guest, "pcnet32", "loaded", mark)
    assert "uid=0(root)" in guest.check("cat /var/tmp/mark")
    assert guest.check("cat /proc/sys/kernel/printk_delay").strip() == "1"
    guest.check("echo 0 > /proc/sys/kernel/printk_delay; test -d /run/flag")
    assert "Live" in guest.modules()["pcnet32"]
    assert (text(record, "KMODD_COMMAND_STATUS"), text(record, "KMODD_LINE")) == ("0", "1")
    assert text(record, "KMODD_FILE") == "/etc/modprobe.d/pcnet.conf"


def test_a_command_has_all_capabilities_the_usual_priority_and_a_unit_of_its_own(guest: Machine) -> None:
    """What it says comes with the record."""
    mark = guest.mark()
    sets = "grep -e CapEff -e CapBnd -e NoNewPrivs -e Seccomp: /proc/self/status"
    configure(guest, f"install kt_plain {sets}; cut -d' ' -f19 /proc/self/stat; cat /proc/self/cgroup; exit 3\n")
    everything = guest.check("grep CapBnd /proc/1/status").split()[1]
    appear(guest, "kt_plain")
    record = record_of(guest, "kt_plain", "failed", mark)
    said = dict(line.split(r":\t", 1) for line in text(record, "KMODD_COMMAND_OUTPUT").split(r"\n") if r"\t" in line)
    assert said == {"CapEff": everything, "CapBnd": everything, "NoNewPrivs": "0", "Seccomp": "0"}
    assert r"\n0\n0::/system.slice/kmodd-command@" in text(record, "KMODD_COMMAND_OUTPUT")
    assert text(record, "KMODD_COMMAND_STATUS") == "3"
    assert "install command of /etc/modprobe.d/test.conf:1 exited with status 3" in text(record, "MESSAGE")
    vanish(guest, "kt_plain")


@pytest.mark.parametrize(
    "end",
    [
        pytest.param("systemctl stop kmodd", marks=pytest.mark.long),
        "systemctl kill --signal=KILL kmodd",
        "systemctl stop kmodd-command.socket kmodd",
    ],
)
def test_a_command_outlives_the_daemon_and_is_on_record(guest: Machine, end: str) -> None:
    configure(guest, HELD)
    mark = guest.mark()
    appear(guest, "kt_plain")
    until(lambda: guest.run("test -s /run/pid").status == 0, 60.0, "the command has begun")
    pid = guest.check("cat /run/pid").strip()
    guest.check(end)
    guest.check(f"systemctl stop kmodd; kill -0 {pid}")
    assert guest.run("systemctl is-active --quiet kmodd").status != 0
    guest.check("touch /run/go")
    until_state(guest, "kt_plain", "Live")
    record = record_of(guest, "kt_plain", "failed", mark)
    assert (text(record, "KMODD_COMMAND_STATUS"), text(record, "KMODD_COMMAND_OUTPUT")) == ("5", "at last")
    assert text(record, "MESSAGE").startswith("After kmodd had ended: kt_plain: install command of ")
    guest.check("systemctl start kmodd")
    settle_kmodd(guest)
    vanish(guest, "kt_plain")


@pytest.mark.parametrize(
    "way",
    [
        *(pytest.param(way, marks=pytest.mark.long) for way in ("{}", "env -i {}", "setsid --wait {}")),
        "env -i setsid --fork {}",
        "env -i unshare --pid --fork {}",
    ],
)
def test_a_modprobe_in_a_command_does_not_wait_for_what_waits_for_it(guest: Machine, way: str) -> None:
    """An operator's call has the daemon run the command, and operators are served one after the other."""
    modprobe = way.format(f"{OURS}/modprobe dummy")
    loaded = "while ! grep -q ^dummy /proc/modules; do busybox sleep 0.2; done"
    configure(guest, f"install kt_plain {modprobe}; {loaded}; {OURS}/modprobe -i kt_plain\n")
    call = "import sys; sys.path.insert(0, '/usr/lib/kmodd'); from kmodd.cli.client import call; "
    answer = guest.check(f"/usr/bin/python3 -c \"{call}print(call('Load', request='kt_plain'))\"", 200)
    assert "'loaded'" in answer
    assert {"dummy", "kt_plain"} <= set(guest.modules())


def test_a_request_of_the_kernel_out_of_a_command_for_its_own_module_ends(guest: Machine) -> None:
    """kt_nest's init, in the command, has the kernel ask for mod1, which is what the command is for."""
    file = f"/usr/lib/modules/{guest.check('uname -r').strip()}/updates/kt_nest.ko"
    command = f"setsid --wait {OURS}/insmod {file}; {OURS}/modprobe -i kt_plain"
    configure(guest, f"alias mod1 kt_plain\ninstall kt_plain {command}\n")
    mark = guest.mark()
    appear(guest, "kt_plain")
    record_of(guest, "kt_plain", "loaded", mark, 200.0)
    refused = record_of(guest, "kt_plain", "not_attempted", mark)
    assert text(refused, "KMODD_SOURCE") == "request"
    assert "kt_nest: request_module gives 256" in guest.check("dmesg")
    vanish(guest, "kt_plain")
