"""kmodd-request under a real kernel, and whom kernel.modprobe names while kmodd comes and goes.

A server of a page stands in for the daemon where the test has to make it stop, die or answer as it likes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.vm.machine import Machine
from tests.vm.payload import Payload

pytestmark = [pytest.mark.vm, pytest.mark.timeout(240)]

Boot = Callable[..., AbstractContextManager[Machine]]

SERVER = """
import subprocess, sys, select
sys.path.insert(0, "/usr/lib/kmodd")
from kmodd.host.requests import RequestSocket
requests = RequestSocket()
print("listening", flush=True)
while select.select([requests], [], []):
    for request in requests.receive():
        print(request.name, flush=True)
        done = subprocess.run(["/sbin/modprobe", "-q", "--", request.name])
        requests.answer(request, done.returncode == 0)
"""
ASK = """
import socket, sys
try:
    socket.socket(int(sys.argv[1]), socket.SOCK_DGRAM)
    print("opened")
except OSError as error:
    print(error.errno)
"""
NO_SUCH_FAMILY = "97"
"""EAFNOSUPPORT."""
OURS = "/usr/lib/kmodd/kmodd-request"
STOCK = "/sbin/modprobe"
DROP_IN = "/run/systemd/system/kmodd.service.d"
REFUSED = "requests for modules are refused"


@pytest.fixture(scope="module")
def guest(boot: Boot) -> Iterator[Machine]:
    """kmodd on a stock machine; its service wants the kernel's requests, with whatever configuration."""

    def prepare(payload: Payload) -> None:
        payload.write("/server.py", SERVER)
        payload.write("/ask.py", ASK)
        start = "[Service]\nExecStartPre=/bin/touch /run/kmodd/request\n"
        payload.write("/etc/systemd/system/kmodd.service.d/request.conf", start)

    with boot("the guest that asks", with_kmod=True, prepare=prepare) as machine:
        yield machine


def _wait_for(machine: Machine, command: str, timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while machine.run(command).status != 0:
        assert time.monotonic() < deadline, f"in vain: {command}"
        time.sleep(0.2)


def _setting(machine: Machine) -> str:
    return machine.check("cat /proc/sys/kernel/modprobe").strip()


def _told(machine: Machine) -> int:
    """How often it was said that requests are refused from now on."""
    return machine.check("journalctl -b -o cat -t kmodd").count(REFUSED)


def _refusals(machine: Machine) -> list[str]:
    return re.findall(r"kmodd-request: (\S+) refused", machine.check("dmesg"))


@pytest.fixture
def server(guest: Machine) -> Iterator[Machine]:
    """The guest without kmodd, the server in its place, and the kernel calls kmodd-request."""
    guest.check("systemctl stop kmodd")
    guest.check("setsid python3 /server.py </dev/null >/run/server.log 2>&1 & echo $! >/run/server.pid")
    _wait_for(guest, "grep -q listening /run/server.log")
    guest.check("/usr/lib/kmodd/kernel-helper set")
    assert _setting(guest) == OURS
    yield guest
    guest.run("kill -KILL $(cat /run/server.pid)")
    guest.check("rm -f /run/kmodd/request /run/kmodd/closed; /usr/lib/kmodd/kernel-helper unset")
    assert _setting(guest) == STOCK
    guest.check("systemctl start kmodd")


def test_the_kernel_asks_through_it_and_goes_by_its_answer(server: Machine) -> None:
    """AF_VSOCK (40) has a module, family 9 (AF_X25) has none in Debian."""
    assert "vsock" not in server.modules()
    assert server.check("python3 /ask.py 40").strip() == "opened"
    assert "vsock" in server.modules()
    assert server.check("python3 /ask.py 9").strip() == NO_SUCH_FAMILY
    assert {"net-pf-40", "net-pf-9"} <= set(server.check("cat /run/server.log").split())


@pytest.mark.parametrize("how", ["STOP", "KILL"])
@pytest.mark.parametrize("closed", [False, True])
def test_without_an_answer_modprobe_loads_or_nobody_does(server: Machine, how: str, closed: bool) -> None:
    if "minix" in server.modules():
        server.remove_module("minix")
    if closed:
        server.check("touch /run/kmodd/closed")
    before = len(_refusals(server))
    server.check(f"kill -{how} $(cat /run/server.pid)")
    server.run("mkdir -p /run/mnt; mount -t minix none /run/mnt")
    assert ("minix" in server.modules()) != closed
    assert _refusals(server)[before:] == (["fs-minix"] if closed else [])


def test_it_is_set_while_kmodd_runs_and_put_back_when_it_ends(guest: Machine) -> None:
    assert _setting(guest) == OURS
    guest.check(f"mkdir -p {DROP_IN}")
    guest.check(f"printf '[Service]\\nRestartSec=5\\n' >{DROP_IN}/slow.conf; systemctl daemon-reload")
    guest.check("systemctl kill --signal=KILL --kill-who=main kmodd")
    _wait_for(guest, "systemctl show --property=SubState kmodd | grep -q auto-restart")
    assert _setting(guest) == STOCK
    _wait_for(guest, "systemctl is-active --quiet kmodd")
    assert _setting(guest) == OURS
    guest.check("systemctl stop kmodd")
    assert _setting(guest) == STOCK
    guest.check(f"rm {DROP_IN}/slow.conf; systemctl daemon-reload; systemctl start kmodd")
    assert _setting(guest) == OURS


def test_under_an_enforced_policy_neither_crash_nor_restart_leaves_a_gap(guest: Machine) -> None:
    """The flag is the test's own: a daemon whose policy is off takes it away when it starts, so it is put back then."""
    guest.check(f"touch /run/kmodd/closed; mkdir -p {DROP_IN}")
    guest.check(f"printf '[Service]\\nExecStartPost=/bin/touch /run/kmodd/closed\\n' >{DROP_IN}/closed.conf")
    guest.check("systemctl daemon-reload")
    before = _told(guest)
    guest.check("systemctl restart kmodd")
    assert (_setting(guest), _told(guest)) == (OURS, before + 1)
    guest.check(f"printf '[Service]\\nExecStart=\\nExecStart=/bin/false\\n' >{DROP_IN}/broken.conf")
    guest.check("systemctl daemon-reload; systemctl kill --signal=KILL --kill-who=main kmodd")
    _wait_for(guest, "systemctl is-failed --quiet kmodd")
    _wait_for(guest, "systemctl show --property=ExecMainExitTimestampMonotonic kmodd-restore-udev | grep -q '=[1-9]'")
    assert _setting(guest) == OURS
    guest.check(f"rm {DROP_IN}/broken.conf; systemctl daemon-reload; systemctl reset-failed kmodd")
    guest.check("systemctl start kmodd")
    assert _setting(guest) == OURS
    guest.check("systemctl stop kmodd")
    assert _setting(guest) == STOCK
    guest.check(f"rm -f {DROP_IN}/closed.conf /run/kmodd/closed; systemctl daemon-reload; systemctl start kmodd")


def test_an_empty_setting_is_left_alone(guest: Machine) -> None:
    guest.check("systemctl stop kmodd; echo >/proc/sys/kernel/modprobe; systemctl start kmodd")
    assert _setting(guest) == ""
    assert "kernel.modprobe is empty" in guest.check("journalctl -b -o cat -t kmodd")
    guest.check(f"systemctl stop kmodd; echo {STOCK} >/proc/sys/kernel/modprobe; systemctl start kmodd")
    assert _setting(guest) == OURS
