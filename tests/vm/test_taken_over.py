"""A daemon that is taken over, under its real unit: what it tries to become more than it is, and what it still can do.

The attacks run within the daemon's own process, after READY. The control: the same from a shell of root's succeed.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.vm.guest.taken_over import ANSWER, ATTACKS, PATHS, VICTIM, WORK
from tests.vm.machine import Machine
from tests.vm.payload import Payload

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

SCRIPT = "/usr/lib/attack/taken_over.py"
PYTHON = "/usr/bin/python3 -IB"
DROP_IN = f"[Service]\nExecStart=\nExecStart={PYTHON} {SCRIPT} inside\n"
BACKGROUND = "</dev/null >/dev/null 2>&1 &"
REFUSED = {"EPERM", "EACCES", "EROFS", "ENOENT"}


@pytest.fixture(scope="module")
def guest(boot: Callable[..., AbstractContextManager[Machine]]) -> Iterator[Machine]:
    def prepare(payload: Payload) -> None:
        payload.write(SCRIPT, (Path(__file__).parent / "guest/taken_over.py").read_bytes())

    with boot("the guest whose daemon is taken over", prepare=prepare) as machine:
        machine.check(f"{PYTHON} {SCRIPT} victim {BACKGROUND}")
        machine.check(f"{PYTHON} {SCRIPT} listen {BACKGROUND}")
        for path in (*PATHS, VICTIM):
            machine.check(f"until [ -e {path} ]; do busybox usleep 100000; done", 60)
        yield machine


@pytest.fixture(scope="module")
def outside(guest: Machine) -> dict[str, str]:
    return dict(json.loads(guest.check(f"{PYTHON} {SCRIPT} outside", 60)))


@pytest.fixture(scope="module")
def inside(guest: Machine, outside: dict[str, str]) -> dict[str, str]:
    """After `outside`, which traces the victim."""
    unit = "/run/systemd/system/kmodd.service.d"
    guest.check(
        f"mkdir -p {unit} && printf %s {shlex.quote(DROP_IN)} >{unit}/attack.conf && systemctl daemon-reload", 60
    )
    guest.check("systemctl restart kmodd", 120)
    guest.check(f"until [ -e {ANSWER} ]; do busybox usleep 200000; done", 120)
    return dict(json.loads(guest.check(f"cat {ANSWER}")))


@pytest.mark.parametrize("attack", [*ATTACKS])
def test_an_attack_fails_in_the_daemon_and_succeeds_outside(
    outside: dict[str, str], inside: dict[str, str], attack: str
) -> None:
    assert outside[attack] == ""
    assert inside[attack] in REFUSED


@pytest.mark.parametrize("path", PATHS)
def test_paths_of_sockets_that_were_there_at_the_start_are_hidden(inside: dict[str, str], path: str) -> None:
    """By a socket that the daemon would have from before, or from another process."""
    assert inside[f"old socket to {path}"] in REFUSED


@pytest.mark.parametrize("work", [*WORK])
def test_the_daemon_can_do_its_work(inside: dict[str, str], work: str) -> None:
    assert inside[work] == ""
