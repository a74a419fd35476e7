"""Requests out of inits, many at once, of processes that die; and what nothing uses any more goes again."""

from __future__ import annotations

import errno
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.vm.faults import (
    LANES,
    MODPROBE,
    given_to_kernel,
    let_go,
    results,
    set_lanes,
    settle_kmodd,
    state,
    status,
    until,
    until_state,
)
from tests.vm.image import Image
from tests.vm.journal import Record, text
from tests.vm.machine import Machine
from tests.vm.payload import Payload
from tests.vm.using import CONF, asked, command_of, configure, prepare_using, use

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

#: Families that Linux has numbers for and Debian no module: the kernel asks, and it is one of ours that comes.
CHAIN, ITSELF, SLOW = "socket 18 2 0", "socket 22 2 0", "socket 25 2 0"
ALIASES = ("net-pf-18 kt_chain_a", "net-pf-22 kt_self", "net-pf-25 kt_slow")
KEY, PHONET, KCM = "socket 15 3 2", "socket 35 2 0", "socket 41 5 0"
IDLE = 3  # AutocleanSec=
AUTOCLEAN = "Autoclean=af_key phonet"
STUCK_AFTER = 60

#: 200 threads, each with one request: 5 families, asked for by 10 threads each, and 150 unknown file systems.
#: The kernel runs 50 helpers at a time and lets the others wait for five seconds (kernel/module/kmod.c). What it then
#: refuses by itself, for a slow machine, is asked for again.
MANY = """
import ctypes, json, socket, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
families = [5, 26, 35, 41, 42]
gate = threading.Barrier(201)
answers = {}

def opened(number):
    try:
        socket.socket(families[number % 5], socket.SOCK_DGRAM if number % 5 != 3 else socket.SOCK_SEQPACKET).close()
        return 0
    except OSError as error:
        return error.errno

def was_busy():
    log = ctypes.create_string_buffer(1 << 20)
    libc.klogctl(3, log, len(log))
    return b"kmod busy" in log.raw

def ask(number):
    gate.wait()
    if number < 50:
        answers[number] = opened(number)
        while answers[number] and was_busy():
            answers[number] = opened(number)
    else:
        libc.mount(b"none", b"/mnt", b"kt%d" % number, 0, None)
        answers[number] = ctypes.get_errno()

threads = [threading.Thread(target=ask, args=(number,)) for number in range(200)]
for thread in threads:
    thread.start()
gate.wait()
started = time.monotonic()
for thread in threads:
    thread.join()
print(json.dumps([time.monotonic() - started, [answers[number] for number in range(200)]]))
"""
#: A socket that stays open as long as its file is there.
HOLD = """
import os, socket, sys, time
held = socket.socket(15, socket.SOCK_RAW, 2)
print(os.getpid(), flush=True)
while os.path.exists("/run/hold"):
    time.sleep(0.2)
"""


@pytest.fixture(scope="module", params=LANES, ids="lanes={}".format)
def guest(
    image: Image, boot: Callable[..., AbstractContextManager[Machine]], request: pytest.FixtureRequest
) -> Iterator[Machine]:
    def prepare(payload: Payload) -> None:
        set_lanes(payload, request.param)
        prepare_using(payload, image, aliases=ALIASES, conf=f"StuckAfterSec={STUCK_AFTER}\n")
        payload.write("/etc/modprobe.d/slow.conf", "options kt_slow seconds=300\n")
        payload.write("/usr/lib/using/many.py", MANY)
        payload.write("/usr/lib/using/hold.py", HOLD)

    with boot("the guest whose inits ask", prepare=prepare) as machine:
        assert status(machine)["lanes_auto"] == (request.param == "auto")
        yield machine


def _no_lane_is_held(machine: Machine) -> None:
    """Nothing waits and no loader is at work; and the next request is answered."""
    settle_kmodd(machine)
    now = status(machine)
    assert now["waiting"] == 0
    assert [lane for lane in now["lanes"] if "module" in lane] == []
    assert use(machine, "root", "socket 9 2 0").only == errno.EAFNOSUPPORT


def _said(machine: Machine, module: str) -> int:
    """What request_module() gave its init."""
    found = re.findall(rf"{module}: request_module gives (-?\d+)", machine.check("dmesg"))
    assert found, machine.check("dmesg | tail -20")
    return int(found[-1])


# -- nested -------------------------------------------------------------------------------------------------------


def test_a_chain_of_requests_out_of_inits_goes_through(guest: Machine) -> None:
    """a's init waits for b, whose init waits for c, which needs d: with one lane for all it would wait for ever."""
    mark = guest.journal.mark()
    used = use(guest, "user", CHAIN)
    assert [state(guest, f"kt_chain_{each}") for each in "abcd"] == ["Live"] * 4
    assert (_said(guest, "kt_chain_a"), _said(guest, "kt_chain_b")) == (0, 0)
    assert results(guest, "kt_chain_a", mark) == ["loaded"]
    print(f"a chain of three requests and four loads: {used.seconds[CHAIN]:.1f} s")
    assert used.seconds[CHAIN] < STUCK_AFTER, "it waited until it was given up"
    outer, inner = (asked(guest, f"kt_chain_{each}", "loaded", mark) for each in "ab")
    assert text(outer, "KMODD_REQUESTER_PID") == str(used.pid)
    assert text(inner, "KMODD_REQUESTER_COMM") == "kmodd-loader"
    _no_lane_is_held(guest)


def test_a_module_that_requests_itself_is_answered(guest: Machine) -> None:
    """Its init waits for the answer, and the answer must not wait for the init. 256: exit status 1."""
    mark = guest.journal.mark()
    used = use(guest, "user", ITSELF)
    asked(guest, "kt_self", "loaded", mark)
    assert (state(guest, "kt_self"), _said(guest, "kt_self")) == ("Live", 256)
    print(f"a module that asks for itself: {used.seconds[ITSELF]:.1f} s")
    assert used.seconds[ITSELF] < STUCK_AFTER
    assert results(guest, "kt_self", mark) == ["not_attempted", "loaded"]
    assert given_to_kernel(guest, "kt_self") == 1
    _no_lane_is_held(guest)


def test_two_hundred_requests_at_once(guest: Machine) -> None:
    mark = guest.journal.mark()
    seconds, answers = json.loads(guest.check("/usr/bin/python3 -IS /usr/lib/using/many.py", 120))
    print(f"200 requests at once: {seconds:.1f} s")
    assert answers[:50] == [0] * 50
    assert answers[50:] == [errno.ENODEV] * 150
    for module in ("appletalk", "llc2", "phonet", "kcm", "qrtr"):
        asked(guest, module, "loaded", mark)
        assert given_to_kernel(guest, module) == 1
    _no_lane_is_held(guest)


def test_a_requester_that_is_killed_leaves_no_lane_behind(guest: Machine) -> None:
    """Its helper stays until kmodd answers it, and the load goes on. Three die, of whom two waited for the first."""
    mark = guest.journal.mark()
    guest.check("rm -f /run/pids")
    command = command_of("user", [SLOW]).replace("'", "'\\''")
    guest.check(
        f"for n in 1 2 3; do sh -c 'echo $$ >>/run/pids; exec {command}' >/dev/null 2>&1 </dev/null & done; true"
    )
    until_state(guest, "kt_slow", "Loading")
    until(lambda: status(guest)["waiting"] >= 2, 60, "two wait for it")
    guest.check("kill -KILL $(cat /run/pids)")
    assert state(guest, "kt_slow") == "Loading", "the test was too slow to show anything"
    until(lambda: guest.run("kill -0 $(cat /run/pids)").status != 0, 60, "they are dead")
    assert use(guest, "root", "socket 9 2 0").only == errno.EAFNOSUPPORT
    assert state(guest, "kt_slow") == "Loading", "no other request waits for it"
    let_go(guest)
    asked(guest, "kt_slow", "loaded", mark)
    assert given_to_kernel(guest, "kt_slow") == 1
    _no_lane_is_held(guest)


# -- autoclean ----------------------------------------------------------------------------------------------------


def _removed(machine: Machine, module: str, since: int) -> Record:
    return machine.journal.wait_for(
        lambda each: (text(each, "KMODD_MODULE"), text(each, "KMODD_RESULT")) == (module, "removed"), 90.0, since
    )


def _clean(machine: Machine) -> None:
    """From here on; until then nothing goes, however slow the machine is."""
    configure(machine, AUTOCLEAN, f"AutocleanSec={IDLE}")


@pytest.fixture
def cleaned(guest: Machine) -> Iterator[Machine]:
    """The guest without the modules that are at stake, with autoclean on."""
    for module in ("af_key", "xfrm_algo", "phonet", "kcm"):
        guest.run(f"busybox rmmod {module}")
    configure(guest, AUTOCLEAN, "AutocleanSec=3600")
    settle_kmodd(guest)
    assert not {"af_key", "xfrm_algo", "phonet", "kcm"} & set(guest.modules())
    yield guest
    guest.check(f"printf '[Kmodd]\\nStuckAfterSec={STUCK_AFTER}\\n' >{CONF}; kmodd reload")


def test_what_nothing_uses_goes_with_its_dependency(cleaned: Machine) -> None:
    mark = cleaned.journal.mark()
    used = use(cleaned, "user", KEY, KCM)
    assert used.errno[KCM] == 0
    assert {"af_key", "xfrm_algo", "kcm"} <= set(cleaned.modules())
    assert re.search(r"^ *Autoclean: af_key is removed in \d+(h|min)\b", cleaned.check("kmodd status"), re.MULTILINE)
    _clean(cleaned)
    record = _removed(cleaned, "af_key", mark)
    assert f", unused for {IDLE}s" in text(record, "MESSAGE")
    _removed(cleaned, "xfrm_algo", mark)
    now = cleaned.modules()
    assert not {"af_key", "xfrm_algo"} & set(now)
    assert "kcm" in now, "it is not named in Autoclean="
    assert status(cleaned)["autoclean"] == []


def test_a_used_module_stays_and_its_time_restarts(cleaned: Machine) -> None:
    """phonet is the clock: it was used last later than af_key was opened, and goes first."""
    mark = cleaned.journal.mark()
    cleaned.check("touch /run/hold; (exec /usr/bin/python3 -IS /usr/lib/using/hold.py) >/run/held 2>&1 </dev/null &")
    until(lambda: "af_key" in cleaned.modules() and cleaned.check("cat /run/held").strip(), 60, "a socket is open")
    _clean(cleaned)
    use(cleaned, "root", PHONET)
    _removed(cleaned, "phonet", mark)
    assert results(cleaned, "af_key", mark) == ["loaded"]
    assert "af_key" in cleaned.modules()
    let_go = time.monotonic()
    cleaned.check("rm /run/hold")
    _removed(cleaned, "af_key", mark)
    assert time.monotonic() - let_go > 1, "its time did not restart"


@pytest.mark.long
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_module_loaded_by_hand_stays(cleaned: Machine, when: str) -> None:
    """Loaded by hand and then used; or, once it is there, taken out and put in by hand with a foreign tool."""
    tree = "/usr/lib/modules/$(uname -r)/kernel/net"
    mark = cleaned.journal.mark()
    if when == "before":
        cleaned.check(f"{MODPROBE} af_key")
    else:
        assert use(cleaned, "root", KEY).only == 0
        cleaned.check("busybox rmmod af_key && busybox rmmod xfrm_algo")
        cleaned.check(f"busybox insmod {tree}/xfrm/xfrm_algo.ko && busybox insmod {tree}/key/af_key.ko")
    assert use(cleaned, "root", KEY, PHONET).errno == {KEY: 0, PHONET: 0}
    _clean(cleaned)
    _removed(cleaned, "phonet", mark)
    assert {"af_key", "xfrm_algo"} <= set(cleaned.modules())
    assert status(cleaned)["autoclean"] == []
