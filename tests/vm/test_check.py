"""`kmodd check` and `kmodd profile` for root, a user and a container of a stock machine: the kernel has its say."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from tests.vm.faults import until
from tests.vm.image import Image
from tests.vm.machine import Machine
from tests.vm.payload import Payload
from tests.vm.using import NOBODY, SETTING, STOCK, USERS, WAYS, prepare_asking, unload, use, used_of

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]

LIST, PROFILE = "/run/list", "/run/profile"
MASK = "/run/udev/rules.d/80-drivers.rules"
ALG = "socket 38 5 0"
PERSON = 1000
USES = {"root": ("socket 35 2 0", "phonet"), "user": ("socket 41 5 0", "kcm"), "container": ("socket 42 2 0", "qrtr")}
"""Who → what it uses, and the module for that."""


@pytest.fixture(scope="module")
def guest(image: Image, boot: Callable[..., AbstractContextManager[Machine]]) -> Iterator[Machine]:
    def prepare(payload: Payload) -> None:
        prepare_asking(payload, "")

    with boot("the guest that is checked", with_kmod=True, prepare=prepare) as machine:
        yield machine


def checked(machine: Machine, who: str, *options: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the exit status of `kmodd check`, and each subject with what is said of it."""
    ran = machine.run(" ".join([WAYS[who], "kmodd check --json", *options]), 300)
    lines = [json.loads(line) for line in ran.output.splitlines()]
    return ran.status, {line["subject"]: line for line in lines if "subject" in line}


def commands(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the subject of each finding, and the command that mends it."""
    return {subject: line["command"] for subject, line in found.items() if not line["met"]}


# ── check ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_check_finds_what_is_so_and_its_commands_mend_it(guest: Machine) -> None:
    """For whom a module comes, and what is wrong with the installation; a user and a container see it, too."""
    ways = {"person": f"setpriv --reuid={PERSON} --regid={PERSON} --clear-groups {USERS['root']}", **USERS}
    whom = ("person", "container", "root")  # the first that is served has the module loaded

    def errors() -> list[int]:
        return [used_of(guest.check(f"{ways[who]} '{ALG}'", 120)).only for who in whom]

    guest.check(f"echo af_alg >{LIST}; kmodd deny af_alg --for {PERSON}", 120)
    status, found = checked(guest, "user", "--benchmark", LIST)
    assert {"service", "helper", "two-loaders", "tracefs"} <= set(found)
    assert (status, commands(found)) == (1, {"af_alg": "kmodd deny af_alg"})
    by = "processes of root, services, containers (net-pf-38)"
    assert found["af_alg"]["text"] == f"can be loaded by root (modprobe af_alg); {by}"
    assert errors() == [errno.EAFNOSUPPORT, 0, 0]
    guest.check(f"echo {STOCK} >{SETTING} && rm {MASK}")
    status, found = checked(guest, "container", "--benchmark", LIST)
    restart, deny = "systemctl restart kmodd", "kmodd deny --unload af_alg"
    assert (status, commands(found)) == (1, {"helper": restart, "two-loaders": restart, "af_alg": deny})
    guest.check(f"{restart} && kmodd settle", 180)
    until(lambda: guest.run(deny, 120).status == 0, 60, "the command mends it")
    status, found = checked(guest, "root", "--benchmark", LIST)
    assert (status, commands(found)) == (0, {})
    assert errors() == [errno.EAFNOSUPPORT] * 3
    guest.check("kmodd allow af_alg", 120)


def test_check_of_a_user_says_that_kmodd_is_stopped(guest: Machine) -> None:
    """With the command for root. Control: above, it runs."""
    guest.check("systemctl stop kmodd", 120)
    status, found = checked(guest, "user")
    assert (status, commands(found)) == (1, {"service": "systemctl start kmodd"})
    assert found["service"]["text"].startswith("the daemon is not running: systemd does not answer")
    guest.check(f"{found['service']['command']} && kmodd settle", 180)


# ── profile ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_history_that_is_short_or_closed_gives_no_profile(guest: Machine) -> None:
    """The reason is said. Control: the next test."""
    guest.check(f"echo af_alg >{LIST}")
    short = guest.run("kmodd profile make", 120)
    assert short.status == 1
    assert re.search(r"the first record .* in memory only, .* less than 30 days ago: what is used less", short.output)
    for who, words in (("user", "make --force"), ("container", f"test {LIST}")):
        closed = guest.run(f"{WAYS[who]} kmodd profile {words}", 120)
        assert closed.status == 1
        assert "root and the groups systemd-journal and adm may read the system's journal" in closed.output, who


def test_a_profile_refuses_nothing_of_what_each_has_used(guest: Machine) -> None:
    """For each who has used it. Control: without one request, the load for it is refused to its user."""
    before = guest.modules()

    def comes(who: str) -> bool:
        use_, module = USES[who]
        use(guest, who, use_)
        return module in guest.modules()

    assert [comes(who) for who in USES] == [True] * 3
    assert unload(guest, before) == []
    guest.check(f"journalctl --sync; kmodd profile make --force >{PROFILE}", 120)
    tested = guest.run(f"kmodd profile test {PROFILE}", 120)
    assert tested.status == 0, tested.output
    assert "modules that the profile would have refused: 0\n" in tested.output
    less = guest.run(f"sed 's/net-pf-41/net-pf-0/' {PROFILE} | kmodd profile test -", 120)
    assert less.status == 1
    assert re.search(rf"^ *1 +kcm +python3 uid {NOBODY}, ", less.output, re.MULTILINE), less.output
