"""What processes use and the kernel lacks: sockets, file systems, links, ciphers, device nodes and more.

Each is loaded through kmodd, and the record tells who it was that made the kernel ask: root, a user, a container, a
service. The guest has no modprobe that could load it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.vm.faults import until
from tests.vm.image import Image
from tests.vm.journal import text
from tests.vm.machine import Machine
from tests.vm.payload import Payload
from tests.vm.scenario import settle, stranger_faults
from tests.vm.using import OURS, SETTING, STOCK, asked, prepare_using, unload, use, wrong_requester

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

#: Use (see guest/using.py) → the module that it takes. Debian has taken the aliases of AX.25, RDS, TIPC and DCCP away.
SOCKETS = {
    "socket 5 2 0": "appletalk",
    "socket 8 2 0": "atm",
    "socket 15 3 2": "af_key",
    "socket 24 2 0": "pppox",
    "socket 26 2 0": "llc2",
    "socket 29 3 1": "can_raw",  # the protocol, asked for after the family
    "socket 35 2 0": "phonet",
    "socket 38 5 0": "af_alg",
    "socket 40 1 0": "vsock_loopback",
    "socket 41 5 0": "kcm",
    "socket 42 2 0": "qrtr",  # its init binds a socket, as its caller may
    "socket 2 2 115": "l2tp_ip",
    "socket 16 3 6": "xfrm_user",
    "socket 16 3 12": "nfnetlink",
}
#: Those that take long, or cannot be unloaded again.
MORE_SOCKETS = {"socket 31 5 0": "bluetooth", "socket 43 1 0": "smc", "socket 2 1 132": "sctp"}
MOUNTS = {"mount vfat": "vfat", "mount iso9660": "isofs", "mount squashfs": "squashfs", "mount minix": "minix"}
LINKS = {"link dummy": "dummy", "link ifb": "ifb", "link nlmon": "nlmon"}
TRAFFIC = {"qdisc sfq": "sch_sfq", "filter basic": "cls_basic", "chain nat": "nft_chain_nat"}
CIPHERS = {"alg hash wp512": "wp512", "alg skcipher ecb(des)": "algif_skcipher"}
NODES = {
    "open /dev/uinput": "uinput",
    "open /dev/uhid": "uhid",
    "open /dev/cuse": "cuse",
    "open /dev/net/tun": "tun",
    "open /dev/ppp": "ppp_generic",
}
OTHERS = {"exec /usr/lib/using/odd": "kt_plain", "ldisc 13": "n_hdlc"}

WITHOUT_PRIVILEGE = {**SOCKETS, **CIPHERS, **NODES, **OTHERS}
USES = {
    "user": {**WITHOUT_PRIVILEGE, **MORE_SOCKETS},
    "container": {**WITHOUT_PRIVILEGE, **MOUNTS, **LINKS, **TRAFFIC},
    "root": {**WITHOUT_PRIVILEGE, **MOUNTS, **LINKS, **TRAFFIC},
}

#: A program of no known kind: the kernel asks for `binfmt-` and bytes 2 and 3 in hexadecimal (fs/exec.c).
ODD_PROGRAM = b"\x7fK\x54\x01"
ODD_ALIAS = "binfmt-0154 kt_plain"
SERVICE = """\
[Service]
Type=oneshot
User=daemon
ExecStart=/usr/bin/python3 -IS /usr/lib/using/using.py "socket 39 2 1"
"""


@pytest.fixture(scope="module")
def guest(image: Image, boot: Callable[..., AbstractContextManager[Machine]]) -> Iterator[Machine]:
    def prepare(payload: Payload) -> None:
        prepare_using(payload, image, aliases=(ODD_ALIAS,))
        payload.write("/usr/lib/using/odd", ODD_PROGRAM, 0o755)
        payload.write("/etc/systemd/system/asker.service", SERVICE)

    with boot("the guest whose processes use things", prepare=prepare) as machine:
        _make_nodes(machine)
        yield machine


def _make_nodes(machine: Machine) -> None:
    """The device nodes of modules.devname, as systemd-tmpfiles makes them, open to all."""
    lines = machine.check("cat /usr/lib/modules/$(uname -r)/modules.devname").splitlines()
    nodes = {path: number for _, path, number in (line.split() for line in lines if not line.startswith("#"))}
    for path in (f"/dev/{node}" for node in nodes if f"open /dev/{node}" in NODES):
        kind, _, number = nodes[path.removeprefix("/dev/")].partition("c")
        assert kind == ""
        major, minor = number.split(":")
        machine.check(f"mkdir -p $(dirname {path}); [ -e {path} ] || mknod {path} c {major} {minor}; chmod 666 {path}")


@pytest.mark.parametrize("who", ["user", "container", pytest.param("root", marks=pytest.mark.long)])
def test_what_is_used_is_loaded_and_its_user_is_on_record(guest: Machine, who: str) -> None:
    uses = USES[who]
    before, mark = guest.modules(), guest.journal.mark()
    there = [module for module in uses.values() if module in before]
    assert there == [], "nothing would be shown of these"
    used = use(guest, who, *uses, timeout=200)
    now = guest.modules()
    missing = [f"{each}: errno {used.errno[each]}" for each, module in uses.items() if module not in now]
    assert missing == [], [text(record, "MESSAGE") for record in guest.journal.after(mark)]
    faults = []
    for module in uses.values():
        wrong = wrong_requester(asked(guest, module, "loaded", mark), who, used.pid)
        faults += [f"{module}: {', '.join(wrong)}"] if wrong else []
    assert faults == []
    # What a cipher is made of, a thread of the kernel asks for (crypto/algboss.c): the record does not say otherwise.
    inner = asked(guest, "des_generic", "loaded", mark)
    assert (text(inner, "KMODD_REQUESTER_COMM"), text(inner, "KMODD_REQUESTER_EXE")) == ("cryptomgr_probe", "")
    settle(guest)
    assert stranger_faults(guest.module_loads()) == []
    slowest = sorted(used.seconds.items(), key=lambda pair: -pair[1])[:3]
    print(f"{who}: {len(uses)} uses, {sum(used.seconds.values()):.1f} s, slowest {slowest}")
    guest.run("busybox ip link del kt-dummy; busybox ip link del kt-ifb; busybox ip link del kt-nlmon")
    if who != "root":  # a network namespace that is over holds its modules until the kernel has come round to it
        later = set(USES["root"].values())
        until(lambda: not later & set(unload(guest, before)), 120.0, "what the next one uses is gone")
    print(f"{who}: not unloaded: {unload(guest, before)}")


def test_a_service_is_named_by_its_unit(guest: Machine) -> None:
    mark = guest.journal.mark()
    guest.check("systemctl start asker.service")
    record = asked(guest, "nfc", "loaded", mark)
    told = [text(record, f"KMODD_REQUESTER_{name}") for name in ("UNIT", "CGROUP", "UID", "CONTAINER")]
    assert told == ["asker.service", "/system.slice/asker.service", "1", "no"]
    assert text(record, "MESSAGE").startswith("Loaded nfc for python3[")


def test_without_kmodd_nothing_of_it_works(guest: Machine) -> None:
    """The control: the same uses, and the kernel calls what it called before."""
    assert guest.check(f"cat {SETTING}").strip() == OURS
    guest.check("systemctl stop kmodd")
    assert guest.check(f"cat {SETTING}").strip() == STOCK
    before = guest.modules()
    uses = [each for each, module in {**WITHOUT_PRIVILEGE, **MOUNTS, **LINKS}.items() if module not in before]
    assert len(uses) > 12
    used = use(guest, "root", *uses)
    assert [each for each in uses if used.errno[each] == 0] == []
    assert set(guest.modules()) == set(before)
    assert {used.errno[each] for each in uses if each in SOCKETS} <= {errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT}
    guest.check("systemctl start kmodd")
