"""Who made the kernel ask, on a real kernel: `ModuleRequests` in kmodd.service's own sandbox, requesters of many kinds.

Here a shell script is the kernel's helper: it waits until the test has looked. Nothing is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.vm.machine import Machine
from tests.vm.payload import REPOSITORY, Payload

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

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
CAPABILITY = "CapabilityBoundingSet=CAP_SYS_PTRACE"
"""What kmodd.service needs beside what it has."""
UNIT = "/etc/systemd/system/listener.service"
"""The installed kmodd.service with another program in its sandbox."""
DROP_IN = """\
[Unit]
OnFailure=
[Service]
Type=simple
NotifyAccess=none
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
    payload.write(f"{UNIT}.d/capability.conf", f"[Service]\n{CAPABILITY}\n")


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
    status, output = guest.run(f"{asking} 2>/run/errors", timeout=200)
    words = guest.check("cat /run/errors; journalctl --no-pager -n 40 -u listener")
    assert status == 0, f"{output}\n{words}"
    return json.loads(output)


def test_a_capture(guest: Machine) -> None:
    script = Path("/tmp/k-whoasked-tmp/capture.py").read_text()
    ran = guest.run(f"cat >/run/capture.py <<'EOFX'\n{script}\nEOFX\npython3 /run/capture.py", timeout=60)
    Path("/tmp/k-whoasked-tmp/capture.json").write_text(ran.output)
    print(ran.status, ran.output[-500:])


def test_told(told: Any) -> None:
    Path("/tmp/k-whoasked-tmp/told.json").write_text(json.dumps(told, indent=1))
    print(json.dumps(told, indent=1))
