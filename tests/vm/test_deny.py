"""`kmodd deny` and `kmodd allow` on a stock machine while kmodd runs, is stopped and has crashed; the policy is off."""

from __future__ import annotations

import errno
import json
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.vm.faults import restart, until
from tests.vm.image import Image
from tests.vm.journal import text
from tests.vm.machine import Machine
from tests.vm.payload import Payload
from tests.vm.using import SETTING, USERS, asked, prepare_using, used_of

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]

ALG, SCTP, LLC = "socket 38 5 0", "socket 2 1 132", "socket 26 2 0"
#: A crashed kmodd stays away for as long as the test needs.
LATE = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestartSec=900s\n"
RULES, LINES = "/etc/kmodd/policy.d/05-local.conf", "/etc/modprobe.d/00-kmodd-deny.conf"
LIMITED = "/run/kmodd/policy.d/04-until-boot.conf"
PERSON = 1000
WHO = {**USERS, "person": f"setpriv --reuid={PERSON} --regid={PERSON} --clear-groups {USERS['root']}"}
ASKERS = ("root", "person", "container")
"""The container is a user, mount, network and pid namespace of its own."""


@pytest.fixture(scope="module")
def guest(image: Image, boot: Callable[..., AbstractContextManager[Machine]]) -> Iterator[Machine]:
    def prepare(payload: Payload) -> None:
        prepare_using(payload, image, conf="Policy=off\n")
        payload.write("/etc/systemd/system/kmodd.service.d/late.conf", LATE)

    with boot("the guest with denied modules", with_kmod=True, prepare=prepare) as machine:
        yield machine


def tried(machine: Machine, who: str, use: str) -> int:
    """Have a process use what the kernel asks a module for; the errno that it saw, 0 for none."""
    return used_of(machine.check(f"{WHO[who]} {shlex.quote(use)}", 120)).only


def bring(machine: Machine, state: str) -> None:
    """Have kmodd run, stopped or crashed."""
    if machine.run("systemctl is-active --quiet kmodd").status:
        restart(machine)
    if state == "stopped":
        machine.check("systemctl stop kmodd", 120)
    elif state == "crashed":
        machine.check("systemctl kill --kill-who=main --signal=KILL kmodd")
        until(lambda: machine.run("systemctl is-active --quiet kmodd").status != 0, 60, "kmodd has crashed")


@pytest.mark.parametrize(
    ("state", "other", "module"),
    [
        ("running", "socket 5 2 0", "appletalk"),
        ("stopped", "socket 35 2 0", "phonet"),
        ("crashed", "socket 41 5 0", "kcm"),
    ],
)
def test_a_module_that_is_denied_to_all_is_out_in_each_state(
    guest: Machine, state: str, other: str, module: str
) -> None:
    """By a request of the kernel, and by name. Before the deny and after the allow it comes, as another module does."""
    bring(guest, state)
    assert tried(guest, "person", ALG) == 0
    guest.remove_module("af_alg")
    bring(guest, "running")
    said = guest.check("kmodd deny af_alg --why CVE-2026-1")
    assert said.startswith("It holds in each state of kmodd\n")
    bring(guest, state)
    mark = guest.journal.mark()
    assert {who: tried(guest, who, ALG) for who in ASKERS} == dict.fromkeys(ASKERS, errno.EAFNOSUPPORT)
    assert guest.run("modprobe af_alg").status != 0
    assert "af_alg" not in guest.modules()
    assert tried(guest, "root", other) == 0
    assert module in guest.modules()
    if state == "running":
        record = asked(guest, "af_alg", "denied", mark)
        assert text(record, "KMODD_FILE") == RULES
    guest.check("kmodd allow af_alg")
    assert tried(guest, "person", ALG) == 0
    guest.remove_module("af_alg")
    bring(guest, "running")
    assert guest.run(f"test -e {RULES} || test -e {LINES}").status == 1


def test_what_is_allowed_again_is_loaded_and_its_user_is_named(guest: Machine) -> None:
    guest.check("kmodd deny af_alg")
    guest.check("kmodd allow af_alg")
    assert tried(guest, "person", ALG) == 0
    said = guest.check("kmodd deny af_alg")
    assert re.search(r"^af_alg is loaded now", said, re.MULTILINE)
    assert "vm-shell.service" in said
    guest.check("kmodd allow af_alg")


def test_a_user_that_is_denied_a_module_does_not_get_it_and_root_does(guest: Machine) -> None:
    """After a crash the kernel's helper is closed, as who asks is not known then."""
    said = guest.check(f"kmodd deny sctp --for {PERSON}")
    assert "not after `systemctl stop kmodd`" in said.partition("\n")[0]
    mark = guest.journal.mark()
    assert tried(guest, "person", SCTP) == errno.EPROTONOSUPPORT
    assert text(asked(guest, "sctp", "denied", mark), "KMODD_FILE") == RULES
    bring(guest, "crashed")
    assert tried(guest, "person", SCTP) == errno.EPROTONOSUPPORT
    assert "sctp" not in guest.modules()
    bring(guest, "running")
    mark = guest.journal.mark()
    if tried(guest, "root", SCTP):  # right after a start the process may not be known, kmodd-policy(5)
        assert text(asked(guest, "sctp", "denied", mark), "KMODD_REQUESTER_UID") == ""
    until(lambda: tried(guest, "root", SCTP) == 0, 60, "root has sctp")
    guest.check(f"kmodd allow sctp --for {PERSON}")
    assert guest.run(f"test -e {RULES}").status == 1


def test_a_removal_is_refused_while_a_file_system_needs_the_module(guest: Machine) -> None:
    """--force writes the rule, and the kernel keeps the module; without the mount it goes, and does not come back."""
    guest.check("mkdir -p /a /b /mnt && mount -t overlay -o lowerdir=/a:/b overlay /mnt")
    refused = guest.run("kmodd deny --unload overlay")
    assert refused.status == 1
    assert "Failed to remove overlay: in use by the file system at /mnt; nothing is changed" in refused.output
    assert guest.run(f"test -e {RULES} || test -e {LINES}").status == 1
    forced = guest.run("kmodd deny --unload --force --json overlay")
    assert forced.status == 1
    (stayed,) = json.loads(forced.output)["unload"]["stayed"]
    assert stayed["module"] == "overlay"
    assert stayed["why"].startswith("it is in use by the file system at /mnt, with ")
    assert "overlay" in guest.modules()
    guest.check("umount /mnt")
    assert "Removed overlay\n" in guest.check("kmodd deny --unload overlay")
    assert "overlay" not in guest.modules()
    assert guest.run("mount -t overlay -o lowerdir=/a:/b overlay /mnt").status != 0
    guest.check("kmodd allow overlay && mount -t overlay -o lowerdir=/a:/b overlay /mnt && umount /mnt")


def test_a_removal_takes_what_uses_the_module_first(guest: Machine) -> None:
    """A dry run takes nothing."""
    guest.check("modprobe algif_hash")
    plan = guest.check("kmodd deny --unload --dry-run af_alg")
    assert "Modules to remove, in this order: algif_hash, af_alg\n" in plan
    assert "algif_hash" in guest.modules()
    assert "Removed algif_hash, af_alg\n" in guest.check("kmodd deny --unload af_alg")
    assert not {"algif_hash", "af_alg"} & {*guest.modules()}
    assert tried(guest, "person", ALG) == errno.EAFNOSUPPORT
    guest.check("kmodd allow af_alg")


@pytest.mark.long
def test_a_time_limit_survives_a_restart_and_ends(guest: Machine) -> None:
    """What is loaded meanwhile stays; the next load is refused."""
    guest.check("kmodd deny llc2")
    assert tried(guest, "root", LLC) == errno.EAFNOSUPPORT
    assert "stays loaded" in guest.run("kmodd allow llc2 --for-seconds 180").output
    restart(guest)
    assert tried(guest, "root", LLC) == 0
    end = int(re.findall(r" until=(\d+)", guest.check(f"cat {LIMITED}"))[0])
    until(lambda: float(guest.check("cat /proc/uptime").split()[0]) >= end, 300, "the time is over")
    assert "llc2" in guest.modules()
    guest.remove_module("llc2")
    assert tried(guest, "root", LLC) == errno.EAFNOSUPPORT
    guest.run("kmodd allow llc2 --once")
    assert tried(guest, "root", LLC) == 0
    guest.remove_module("llc2")
    assert tried(guest, "root", LLC) == errno.EAFNOSUPPORT
    guest.check("systemctl stop kmodd", 120)
    assert guest.run("kmodd allow llc2 --once").status == 7
    restart(guest)
    guest.check("kmodd allow llc2")
    assert "kmodd" in guest.check(f"cat {SETTING}")
    assert tried(guest, "root", LLC) == 0
