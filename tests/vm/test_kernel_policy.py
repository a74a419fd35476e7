"""Policy on a real kernel: what a user makes the kernel ask for is vetted, what the hardware needs is not. The seal.

The tests go from loose to tight; the last one shuts the kernel for good.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from kmodd.planning.policy import SEALED
from kmodd.planning.record import SEAL
from tests.vm.devices import DEVICES
from tests.vm.faults import MODPROBE, appear, record_of, restart, until_state
from tests.vm.image import Image
from tests.vm.journal import Record, text
from tests.vm.machine import Machine
from tests.vm.payload import Payload
from tests.vm.scenario import plug, settle
from tests.vm.using import NOBODY, PRESETS, asked, configure, prepare_using, use, wrong_requester

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

PRESET = "50-no-unprivileged-autoload.conf"
RULES = "/etc/kmodd/policy.d"
ALG, SCTP, KEY, PHONET, KCM, LLC = (
    "socket 38 5 0", "socket 2 1 132", "socket 15 3 2", "socket 35 2 0", "socket 41 5 0", "socket 26 2 0",
)  # fmt: skip
APPLETALK = "socket 5 2 0"
RARE_HASH, OTHER_HASH, RARE_CIPHER = "alg hash rmd160", "alg hash wp512", "alg skcipher ecb(serpent)"
USUAL_HASH, USUAL_CIPHER = "alg hash cmac(aes)", "alg skcipher cbc(aes)"
"""Their parts, cmac, cbc and aes, are on the list of the preset."""
KEPT_RULES = "/run/kmodd/rules"
MODULES_DISABLED = "/proc/sys/kernel/modules_disabled"


@pytest.fixture(scope="module")
def guest(image: Image, boot: Callable[..., AbstractContextManager[Machine]]) -> Iterator[Machine]:
    def prepare(payload: Payload) -> None:
        prepare_using(payload, image, conf="Policy=enforce\n")
        payload.write("/etc/modules-load.d/bus.conf", "kt_bus\n")
        payload.link(f"{RULES}/{PRESET}", f"{PRESETS}/{PRESET}")

    with boot("the guest with a policy", prepare=prepare) as machine:
        yield machine


def _denied(record: Record) -> list[str]:
    """Its rule, without the blanks that may be in it, and where that stands."""
    return [*text(record, "KMODD_RULE").split(), text(record, "KMODD_FILE").rpartition("/")[2]]


def _phase(machine: Machine) -> str:
    return str(json.loads(machine.check("kmodd status --json"))["phase"])


@pytest.mark.parametrize(
    ("who", "use_", "module", "code", "rule"),
    [
        ("user", ALG, "af_alg", errno.EAFNOSUPPORT, "uid=!0"),
        ("user", SCTP, "sctp", errno.EPROTONOSUPPORT, "uid=!0"),
        ("container", KEY, "af_key", errno.EAFNOSUPPORT, "container=yes"),
    ],
)
def test_a_user_is_refused_and_named(guest: Machine, who: str, use_: str, module: str, code: int, rule: str) -> None:
    mark = guest.journal.mark()
    used = use(guest, who, use_)
    assert used.only == code
    assert module not in guest.modules()
    record = asked(guest, module, "denied", mark)
    assert wrong_requester(record, who, used.pid) == []
    assert _denied(record) == ["deny", "origin=request", rule, PRESET]
    assert f" for python3[{used.pid}] uid {NOBODY}" in text(record, "MESSAGE")


def test_root_is_not_refused(guest: Machine) -> None:
    mark = guest.journal.mark()
    used = use(guest, "root", ALG, SCTP)
    assert used.errno == {ALG: 0, SCTP: 0}
    assert wrong_requester(asked(guest, "af_alg", "loaded", mark), "root", used.pid) == []
    assert wrong_requester(asked(guest, "sctp", "loaded", mark), "root", used.pid) == []


def test_a_user_gets_the_usual_ciphers_and_no_rare_one(guest: Machine) -> None:
    """By AF_ALG, which is there. A user asks for a cipher of one part by name; for the parts of others a thread of the
    kernel does, for any user. Root gets a rare one. The control: without the preset, a user gets that, too.
    """
    mark = guest.journal.mark()
    root = use(guest, "root", RARE_HASH, USUAL_CIPHER)
    assert root.errno[RARE_HASH] == 0, "root is not refused"
    assert wrong_requester(asked(guest, "rmd160", "loaded", mark), "root", root.pid) == []
    assert {"algif_hash", "algif_skcipher"} <= set(guest.modules())
    assert not {"cmac", "wp512", "serpent_generic"} & set(guest.modules())

    mark = guest.journal.mark()
    user = use(guest, "user", USUAL_HASH, OTHER_HASH, RARE_CIPHER)
    assert user.errno == {USUAL_HASH: 0, OTHER_HASH: errno.ENOENT, RARE_CIPHER: errno.ENOENT}
    assert "cmac" in guest.modules()
    assert not {"wp512", "serpent_generic"} & set(guest.modules())
    usual, part = asked(guest, "cmac", "loaded", mark), asked(guest, "serpent_generic", "denied", mark)
    for record, name in ((usual, "cmac"), (part, "serpent")):
        assert (text(record, "KMODD_ALIAS"), text(record, "KMODD_REQUESTER_KERNEL")) == (f"crypto-{name}", "yes")
    assert _denied(part) == ["deny", "origin=request", "container=yes", PRESET], "for whom is not known"
    whole = asked(guest, "wp512", "denied", mark)
    assert wrong_requester(whole, "user", user.pid) == []
    assert _denied(whole) == ["deny", "origin=request", "uid=!0", PRESET]

    guest.check(f"rm {RULES}/{PRESET}; kmodd reload")
    settle(guest)  # a reload looks at all devices again
    user = use(guest, "user", OTHER_HASH, RARE_CIPHER)
    guest.check(f"ln -s {PRESETS}/{PRESET} {RULES}/; kmodd reload; kmodd settle", 120)
    assert user.errno == {OTHER_HASH: 0, RARE_CIPHER: 0}
    assert {"wp512", "serpent_generic"} <= set(guest.modules())


def test_hardware_gets_its_drivers_and_what_these_ask_for(guest: Machine) -> None:
    """A network card; and a bus of PHYs, whose scan asks for the PHY's driver inside of an init."""
    assert plug(guest, DEVICES["e1000e"]).faults() == []
    mark = guest.journal.mark()
    assert "realtek" not in guest.modules()
    appear(guest, "kt_mdio")
    record_of(guest, "kt_mdio", "loaded", mark)
    until_state(guest, "realtek", "Live")
    record = asked(guest, "realtek", "loaded", mark)
    assert text(record, "KMODD_ALIAS").startswith("mdio:")
    told = [text(record, f"KMODD_REQUESTER_{name}") for name in ("COMM", "UID", "CONTAINER")]
    assert told == ["kmodd-loader", "0", "no"]
    assert text(record, "KMODD_REQUESTER_UNIT").startswith("kmodd-loader@")
    assert "RTL8211E" in guest.check("readlink /sys/bus/mdio_bus/devices/kt_mdio-0:00/driver")


@pytest.mark.long
def test_a_mistake_in_the_rules_allows_nothing(guest: Machine) -> None:
    """After a crash the last valid rules hold; at a boot, requests of root are served, and devices."""
    status = "kmodd status --json"
    assert json.loads(guest.check(status))["problems"] == []
    guest.check(f"rm {RULES}/{PRESET}; echo 'deny orgin=request uid=!0' >{RULES}/10-typo.conf")
    for lose in ("systemctl kill --signal=KILL --kill-who=main kmodd", f"rm {KEPT_RULES}"):
        guest.check(lose)
        restart(guest)
        settle(guest)
        assert f"{RULES}/10-typo.conf:1:6" in json.loads(guest.check(status))["problems"][0]
        assert f"{RULES}/10-typo.conf:1: error: " in guest.run("kmodd lint").output
        mark = guest.journal.mark()
        assert use(guest, "user", APPLETALK).only == errno.EAFNOSUPPORT
        asked(guest, "appletalk", "denied", mark)
    assert use(guest, "root", APPLETALK).only == 0
    assert plug(guest, DEVICES["i6300esb"]).faults() == []
    guest.check(f"rm {RULES}/10-typo.conf; ln -s {PRESETS}/{PRESET} {RULES}/; kmodd reload; kmodd settle", 120)
    assert json.loads(guest.check(status))["problems"] == []


def test_observed_it_is_loaded_and_told_what_would_have_been(guest: Machine) -> None:
    configure(guest, "Policy=observe")
    mark = guest.journal.mark()
    used = use(guest, "user", KCM)
    assert used.only == 0
    record = asked(guest, "kcm", "loaded", mark)
    assert wrong_requester(record, "user", used.pid) == []
    assert text(record, "KMODD_VERDICT") == "would_deny"
    assert _denied(record) == ["deny", "origin=request", "uid=!0", PRESET]
    # The controls: root's carries no verdict, and with the policy off a user's does not.
    use(guest, "root", LLC)
    assert text(asked(guest, "llc2", "loaded", mark), "KMODD_VERDICT") == ""
    configure(guest, "Policy=off")
    use(guest, "user", PHONET)
    assert text(asked(guest, "phonet", "loaded", mark), "KMODD_VERDICT") == ""


def test_a_rehearsal_tells_what_a_seal_would_have_refused(guest: Machine) -> None:
    status, output = guest.run("kmodd seal --rehearse 2>/dev/null")
    assert status == 1
    lines = output.splitlines()
    assert "kcm by request: net-pf-41" in lines
    assert any(line.startswith("e1000e by uevent: pci:v00008086d000010D3") for line in lines)
    guest.check(f"echo 'allow module=kcm' >{RULES}/10-local.conf")
    fewer = guest.run("kmodd seal --rehearse 2>/dev/null").output.splitlines()
    assert set(lines) - set(fewer) == {"kcm by request: net-pf-41"}
    assert _phase(guest) == "running"


def test_a_seal_refuses_devices_and_requests_until_it_is_taken_back(guest: Machine) -> None:
    """A rule that allows opens it; a daemon that is started again keeps it."""
    guest.remove_module("kcm", "phonet")
    guest.check(f"echo 'allow module=kcm' >{RULES}/10-local.conf; kmodd reload; kmodd seal")
    settle(guest)  # a reload looks at all devices again, and of these the seal refuses some too
    mark = guest.journal.mark()
    guest.plug(DEVICES["rtl8139"])
    card = "pci:v000010ECd00008139"
    device = guest.journal.wait_for(
        lambda each: text(each, "KMODD_RESULT") == "denied" and text(each, "KMODD_ALIAS").startswith(card), 60.0, mark
    )
    assert (text(device, "KMODD_SOURCE"), text(device, "KMODD_RULE")) == ("uevent", SEALED)
    used = use(guest, "root", PHONET, KCM)
    assert used.errno == {PHONET: errno.EAFNOSUPPORT, KCM: 0}
    assert text(asked(guest, "phonet", "denied", mark), "KMODD_RULE") == SEALED
    guest.check("systemctl restart kmodd")
    assert _phase(guest) == "sealed"
    settle(guest)
    assert use(guest, "root", PHONET).only == errno.EAFNOSUPPORT
    assert not {"8139cp", "8139too", "phonet"} & set(guest.modules())

    mark = guest.journal.mark()
    guest.check("kmodd seal --undo")
    guest.journal.wait_for(
        lambda each: text(each, "MESSAGE_ID") == SEAL and "removed" in text(each, "MESSAGE"), 60.0, mark
    )
    record_of(guest, "8139cp", "loaded", mark)  # what was refused meanwhile gets its driver now
    assert use(guest, "root", PHONET).only == 0
    guest.check("systemctl restart kmodd")
    assert _phase(guest) != "sealed"


def test_the_kernel_is_shut_only_once_what_is_required_is_there(guest: Machine) -> None:
    configure(guest, "SealRequires=dummy kt-plain")
    guest.check(f"{MODPROBE} kt_plain")
    status, output = guest.run("kmodd seal --permanent", 150)
    assert (status, output.strip().rpartition(": ")[2]) == (1, "dummy")
    assert guest.check(f"cat {MODULES_DISABLED}").strip() == "0"
    guest.check(f"{MODPROBE} dummy")
    mark = guest.journal.mark()
    guest.check("kmodd seal --permanent", 150)
    assert guest.check(f"cat {MODULES_DISABLED}").strip() == "1"
    guest.journal.wait_for(lambda each: text(each, "MESSAGE_ID") == SEAL, 60.0, mark)
    guest.plug(DEVICES["virtio-rng-pci"])
    record = guest.journal.wait_for(lambda each: text(each, "KMODD_RESULT") == "failed", 60.0, mark)
    assert (text(record, "KMODD_SOURCE"), text(record, "ERRNO")) == ("uevent", str(errno.EPERM))
    assert "kernel.modules_disabled=1" in text(record, "MESSAGE")
    assert use(guest, "root", "socket 42 2 0").only == errno.EAFNOSUPPORT
    assert "kernel.modules_disabled=1" in text(asked(guest, "qrtr", "failed", mark), "MESSAGE")
