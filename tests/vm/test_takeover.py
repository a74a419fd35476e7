"""A user's process that becomes a set-user-ID program while the kernel waits for kmodd does not pass for root."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.vm.image import Image
from tests.vm.machine import Machine
from tests.vm.payload import Payload
from tests.vm.scenario import settle
from tests.vm.using import prepare_using

pytestmark = [pytest.mark.vm, pytest.mark.long, pytest.mark.timeout(1800)]

SOURCE = Path(__file__).parent / "guest/takeover.c"
PROGRAM, GRANTED = "/usr/lib/using/takeover", "/usr/lib/using/granted"
TRIES = 250
"""Of each of four kinds."""
WITHIN = 60_000
"""µs after the request, at most, until the other thread executes the program."""


@pytest.fixture(scope="module")
def guest(image: Image, boot: Callable[..., AbstractContextManager[Machine]]) -> Iterator[Machine]:
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, "takeover")
        subprocess.run(["gcc", "-O1", "-static", "-pthread", "-o", built, SOURCE], check=True)

        def prepare(payload: Payload) -> None:
            prepare_using(payload, image, conf="Policy=enforce\n")
            payload.write("/etc/kmodd/policy.d/10-users.conf", "deny origin=request uid=!0\n")
            payload.write(PROGRAM, built.read_bytes(), 0o755)
            payload.write(GRANTED, built.read_bytes(), 0o4755)

        with boot("the guest that is attacked", prepare=prepare) as machine:
            settle(machine)
            yield machine


@contextmanager
def busy(machine: Machine) -> Iterator[None]:
    """Twice as many processes compute as there are processors."""
    loop = "while [ ! -e /run/enough ]; do :; done"
    machine.check(f"rm -f /run/enough; for i in 1 2 3 4; do ({loop}) </dev/null >/dev/null 2>&1 & done")
    try:
        yield
    finally:
        machine.check("touch /run/enough")


@contextmanager
def slow(machine: Machine) -> Iterator[None]:
    """The daemon stands still for most of the time."""
    stop = "kill -STOP $p; busybox usleep 80000; kill -CONT $p; busybox usleep 20000"
    loop = f"p=$(systemctl show -P MainPID kmodd); while [ ! -e /run/enough ]; do {stop}; done"
    machine.check(f"rm -f /run/enough; ({loop}) </dev/null >/dev/null 2>&1 &")
    try:
        yield
    finally:
        machine.check("touch /run/enough; busybox usleep 300000")


@contextmanager
def quiet(_: Machine) -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    ("around", "asks"), [(quiet, ""), (quiet, "asks"), (busy, "asks"), (slow, "asks")],
    ids=["sudo", "that asks on its own", "busy", "slow daemon"],
)  # fmt: skip
def test_no_user_passes_for_root(
    guest: Machine, around: Callable[[Machine], AbstractContextManager[None]], asks: str
) -> None:
    with around(guest):
        output = guest.check(f"{PROGRAM} {TRIES} {WITHIN} {GRANTED} {asks}", 600)
    became_root, opened = map(int, output.split())
    assert became_root == TRIES, "the control: each process has become root's"
    assert opened == 0
    assert "af_alg" not in guest.modules()


def test_honest_requests_of_root_are_known(guest: Machine) -> None:
    """A request of an unknown process would be denied."""
    assert int(guest.check(f"{PROGRAM} honest 100", 300)) >= 99


def test_honest_requests_of_root_are_known_on_a_busy_machine(guest: Machine) -> None:
    with busy(guest):
        known = int(guest.check(f"{PROGRAM} honest 100", 600))
    assert known >= 99
