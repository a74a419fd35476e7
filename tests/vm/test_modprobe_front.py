"""The helper in the place of /sbin/modprobe, as the package puts it: root's plain calls by the daemon, others by kmod.

Witnesses of who has loaded a module: the kernel's own trace. `modprobe` is the helper's name, `modprobe.kmod` kmod's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.vm.faults import let_go, record_of, settle_kmodd, until_state
from tests.vm.image import Image
from tests.vm.journal import Record, text
from tests.vm.machine import Machine
from tests.vm.payload import Payload
from tests.vm.using import OURS, SETTING, STOCK, asked, prepare_using, use

pytestmark = [pytest.mark.vm, pytest.mark.long, pytest.mark.timeout(900)]

DAEMON, KMOD = ["kmodd-loader"], ["modprobe"]
TOOL = "/usr/lib/kmodd/bin/modprobe"
NEST = "socket 26 2 0"
WAITED = 30.0
"""Seconds after which a command of the daemon would have ended in its limit, not by itself."""


@pytest.fixture(scope="module")
def guest(image: Image, boot: Callable[..., AbstractContextManager[Machine]]) -> Iterator[Machine]:
    def prepare(payload: Payload) -> None:
        prepare_using(payload, image, aliases=("net-pf-26 kt_ten",))
        payload.write("/etc/modprobe.d/slow.conf", "options kt_slow seconds=300\n")
        # debian/kmodd.postinst, take_modprobe
        payload.commands.append("mv /usr/sbin/modprobe /usr/sbin/modprobe.kmod")
        payload.commands.append(f"ln {OURS} /usr/sbin/modprobe")

    with boot("the guest with the helper as modprobe", with_kmod=True, prepare=prepare) as machine:
        settle_kmodd(machine)
        yield machine


def loaders(machine: Machine, module: str, command: str) -> list[str]:
    """Run a command without the module before; the tasks that have given it to the kernel."""
    machine.run(f"busybox rmmod {module} 2>/dev/null")
    before = len(machine.module_loads())
    machine.check(command)
    return [load.comm for load in machine.module_loads()[before:] if load.module == module]


def test_the_kernel_keeps_its_setting(guest: Machine) -> None:
    """Control: the setting leads to the helper, and the kernel's own requests are answered as before."""
    assert guest.check(f"cat {SETTING}").strip() == STOCK
    assert guest.run(f"test {STOCK} -ef {OURS}").status == 0
    mark = guest.journal.mark()
    use(guest, "root", "mount minix")
    asked(guest, "minix", "loaded", mark)


def test_a_plain_call_of_root_is_the_daemons(guest: Machine) -> None:
    assert loaders(guest, "dummy", "modprobe dummy") == DAEMON
    assert loaders(guest, "dummy", "modprobe -q -a -- loop dummy") == DAEMON
    assert loaders(guest, "dummy", "modprobe.kmod dummy") == KMOD


@pytest.mark.parametrize(
    "command",
    [
        "modprobe -v dummy",
        "modprobe dummy numdummies=0",
        "MODPROBE_OPTIONS=-q modprobe dummy",
        "unshare --mount modprobe dummy",
        "unshare --mount --pid --fork --mount-proc sh -c 'modprobe dummy; exit $?'",
        "mkdir -p /tmp/new; mount --rbind / /tmp/new; chroot /tmp/new modprobe dummy;"
        " status=$?; umount --recursive /tmp/new; exit $status",
        "echo 'install dummy modprobe.kmod --ignore-install dummy' >/etc/modprobe.d/front.conf; modprobe dummy;"
        " status=$?; rm /etc/modprobe.d/front.conf; exit $status",
    ],
)
def test_another_call_is_kmods(guest: Machine, command: str) -> None:
    """An option, a parameter, the environment, a namespace, a container, a chroot with /run, an install line."""
    assert loaders(guest, "dummy", command) == KMOD


def test_a_process_without_rights_gets_the_kernels_answer(guest: Machine) -> None:
    guest.run("busybox rmmod dummy 2>/dev/null")
    for below in ("setpriv --reuid=65534", "unshare --user --map-root-user", "setpriv --bounding-set=-sys_module"):
        said = guest.run(f"{below} modprobe dummy")
        assert said.status == 1
        assert "Operation not permitted" in said.output
    assert "dummy" not in guest.modules()


@pytest.mark.parametrize("words", ["dummy", "nosuch", "-q nosuch", "-a loop nosuch dummy", "-q -a nosuch dummy"])
def test_words_and_status_are_kmods(guest: Machine, words: str) -> None:
    said = []
    for program in ("modprobe", "modprobe.kmod"):
        guest.run("busybox rmmod dummy 2>/dev/null")
        answer = guest.run(f"{program} {words} 2>&1")
        said.append((answer.status, answer.output.replace("modprobe.kmod:", "modprobe:")))
    assert said[0] == said[1]


def steady(record: Record) -> dict[str, str]:
    """The fields of kmodd that do not differ from one load to the next."""
    varying = ("_USEC", "KMODD_REQUEST", "KMODD_LOADER_PID")
    return {name: text(record, name) for name in record if name.startswith("KMODD_") and not name.endswith(varying)}


def test_the_record_is_that_of_the_tool(guest: Machine) -> None:
    """Field by field; the tool goes through the control socket."""
    records = []
    for program in ("modprobe", TOOL):
        guest.run("busybox rmmod dummy 2>/dev/null")
        mark = guest.journal.mark()
        guest.check(f"{program} dummy")
        records.append(record_of(guest, "dummy", "loaded", mark))
    assert steady(records[0]) == steady(records[1])
    assert text(records[0], "KMODD_SOURCE") == "operator"


def test_a_command_of_the_daemon_does_not_wait_for_it(guest: Machine) -> None:
    """The kernel asks, the daemon runs the command, and its modprobe is kmod's."""
    guest.run("busybox rmmod kt_ten; busybox rmmod dummy")
    lines = "install kt_ten modprobe dummy \\&\\& modprobe.kmod --ignore-install kt_ten"
    guest.check(f"echo {lines} >/etc/modprobe.d/front.conf; kmodd reload")
    before = len(guest.module_loads())
    used = use(guest, "root", NEST)
    guest.check("rm /etc/modprobe.d/front.conf; kmodd reload")
    loads = {load.module: load.comm for load in guest.module_loads()[before:]}
    assert (loads.get("dummy"), loads.get("kt_ten")) == ("modprobe", "modprobe.kmod")
    assert used.seconds[NEST] < WAITED


def test_a_daemon_that_dies_mid_call_is_done_without(guest: Machine) -> None:
    guest.run("busybox rmmod kt_slow 2>/dev/null")
    guest.check("rm -f /run/ended; (modprobe kt_slow; echo $? >/run/ended) </dev/null >/dev/null 2>&1 &")
    until_state(guest, "kt_slow", "Loading")
    guest.check("systemctl kill --kill-who=main --signal=KILL kmodd")
    let_go(guest)
    until_state(guest, "kt_slow", "Live")
    guest.check("until test -s /run/ended; do busybox usleep 100000; done", 60)
    assert guest.check("cat /run/ended").strip() == "0"
    guest.check("systemctl reset-failed kmodd; systemctl start kmodd", 60)
    settle_kmodd(guest)
    guest.check("systemctl stop kmodd")
    assert loaders(guest, "dummy", "modprobe dummy") == KMOD
    guest.check("systemctl start kmodd")
