"""Who made the kernel ask, on a real kernel: `ModuleRequests` in the sandboxes of the units, requesters of many kinds.

Here a shell script is the kernel's helper: it waits until the test has looked. Nothing is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.vm.guest.asking import FORGED
from tests.vm.machine import Machine
from tests.vm.payload import REPOSITORY, Payload

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

GUEST = Path(__file__).parent / "guest"
ASKS = "/run/asks"
HELPER = f"""\
#!/bin/busybox sh
b=/bin/busybox
$b mkfifo {ASKS}/$$
echo "$$ $(printf %s "$3" | $b base64 -w 0)" >{ASKS}/new
read -r status <{ASKS}/$$
exit "$status"
"""
ASK_READER = """\
import socket
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect("/run/kmodd/requester")
print(connection.recv(9))
"""
UNIT = "/etc/systemd/system/listener.service"
"""The installed kmodd.service with another program in its sandbox."""
DROP_IN = """\
[Unit]
OnFailure=
[Service]
ExecStart=
ExecStart=/usr/bin/python3 -IB /usr/lib/asking/listener.py /run/listener/socket
ExecStartPost=
ExecStopPost=
ExecReload=
Restart=no
WatchdogSec=0
RuntimeDirectory=
RuntimeDirectory=listener
SyslogIdentifier=listener
StandardError=journal
"""


def prepare(payload: Payload) -> None:
    for script in ("listener.py", "asking.py"):
        payload.write(f"/usr/lib/asking/{script}", (GUEST / script).read_bytes())
    payload.write("/usr/lib/asking/helper", HELPER, 0o755)
    payload.write(UNIT, (REPOSITORY / "systemd/kmodd.service").read_text())
    payload.write(f"{UNIT}.d/listener.conf", DROP_IN)


@pytest.fixture(scope="module")
def guest(boot: Callable[..., AbstractContextManager[Machine]]) -> Iterator[Machine]:
    with boot("the guest that asks", prepare=prepare) as machine:
        yield machine


@pytest.fixture(scope="module")
def told(guest: Machine) -> Any:
    """What the listener told of each requester, and what is true."""
    guest.check(f"mkdir {ASKS} && echo /usr/lib/asking/helper >/proc/sys/kernel/modprobe")
    guest.check("systemctl start listener.service")
    asking = f"/usr/bin/python3 -I /usr/lib/asking/asking.py /run/listener/socket {ASKS}"
    status, output = guest.run(f"{asking} 2>/run/errors", timeout=500)
    words = guest.check("cat /run/errors; journalctl --no-pager -n 40 -u listener")
    assert status == 0, f"{output}\n{words}"
    return json.loads(output)


ROOT = {"uid": 0, "container": False, "loginuid": None, "cgroup": "/system.slice/vm-shell.service"}
NOBODY = {**ROOT, "uid": 65534}


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("root", {**ROOT, "unit": "vm-shell.service", "comm": "python3"}),
        ("nobody", {**NOBODY, "comm": "a) Z 1\nb"}),
        ("user namespace", {**NOBODY, "container": True}),
        ("pid namespace", {**ROOT, "container": True}),
        ("newline", {**NOBODY, "container": True, "exe": "/usr/bin/busybox", "comm": "busybox"}),
    ],
)
def test_one_requester(told: Any, case: str, expected: dict[str, object]) -> None:
    """The real uid in the initial namespace, the host's pid; root inside a namespace of one's own is no root."""
    found = told[case]
    assert expected.items() <= found["who"].items()
    assert found["who"]["exe"].startswith("/usr/bin/")
    if case != "pid namespace":  # there the requester is a child of what was started
        assert found["who"]["pid"] == found["pid"]
    assert found["name"] == (f"fs-{FORGED}" if case == "newline" else "net-pf-9")
    assert found["forged"] is None


def test_a_thread_s_process(told: Any) -> None:
    assert told["thread"]["tid"] != told["thread"]["pid"] == told["thread"]["who"]["pid"]


def test_a_service(told: Any) -> None:
    expected = {"uid": 1, "unit": "asker.service", "cgroup": "/system.slice/asker.service", "container": False}
    assert expected.items() <= told["service"]["who"].items()


def test_one_name_twice(told: Any) -> None:
    assert [who["pid"] for who in told["twice"]["who"]] == [told["twice"]["pid"]] * 2


def test_two_that_are_alike(told: Any) -> None:
    assert {who["pid"] for who in told["alike"]["who"]} == set(told["alike"]["pids"])
    assert [who["uid"] for who in told["alike"]["who"]] == [65534, 65534]


def test_two_users_at_once_are_unknown_and_the_next_is_not(told: Any) -> None:
    assert told["different"]["who"] == [None, None]
    assert told["different"]["after"]["who"]["pid"] == told["different"]["after"]["pid"]


def test_a_killed_requester_is_unknown(told: Any) -> None:
    assert told["killed"] == {"who": None}


def test_its_number_given_to_another_is_unknown(told: Any) -> None:
    assert told["reused"]["other"] == told["reused"]["pid"]
    assert told["reused"]["who"] is None


def test_who_asks_in_the_tick_of_its_start(told: Any) -> None:
    assert told["young"] == {"found": [True] * 20, "wchan": "call_usermodehelper_exec"}


def test_lost_events(told: Any) -> None:
    assert told["lost"] == {"who": None}


def test_the_instance_goes(told: Any) -> None:
    assert told["close"]["left"] is False


def test_the_reader_of_proc_says_that_it_lacks_its_capability(guest: Machine) -> None:
    """kmodd-requester@.service needs CAP_SYS_PTRACE. The control: with it, it is ready."""
    guest.check(f"cat >/run/ask <<'EOF'\n{ASK_READER}EOF\n")
    assert guest.check("python3 -IB /run/ask", 60).strip() == "b'0 ready'"
    folder = "/run/systemd/system/kmodd-requester@.service.d"
    without = "[Service]\\nCapabilityBoundingSet=~CAP_SYS_PTRACE\\n"
    guest.check(f"mkdir {folder} && printf '{without}' >{folder}/without.conf && systemctl daemon-reload", 60)
    assert guest.check("python3 -IB /run/ask", 60).strip() == "b''"
    said = "kmodd requester: Failed to read /proc/1/ns/user: Permission denied"
    guest.check(f"until journalctl --no-pager -t kmodd | grep -q '{said}'; do busybox usleep 200000; done", 60)
