"""`kmodd verify` on a real kernel: silent where all is well, and it names what was changed, and who did it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from kmodd.host.module_reader import read_module
from kmodd.modfile.modinfo import info
from kmodd.modfile.signature import MAGIC
from tests import trees
from tests.vm.devices import DEVICES
from tests.vm.faults import until
from tests.vm.fixture_modules import add_all, fixture_modules
from tests.vm.image import Image
from tests.vm.machine import Machine
from tests.vm.payload import Payload
from tests.vm.scenario import plug
from tests.vm.using import NOBODY

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

COPIES = "/srv/copies"


def _rebuilt(data: bytes) -> bytes:
    """A module file with another build ID."""
    build_id = info(data, with_build_id=True).build_id
    assert build_id
    return data.replace(build_id, bytes(reversed(build_id)))


def _unsigned(data: bytes) -> bytes:
    """A module file without its signature, whose length stands before the magic (struct module_signature)."""
    assert data.endswith(MAGIC)
    end = len(data) - len(MAGIC)
    return data[: end - 12 - int.from_bytes(data[end - 4 : end], "big")]


@pytest.fixture(scope="module")
def guest(image: Image, boot: Callable[..., AbstractContextManager[Machine]]) -> Iterator[Machine]:
    """With modules out of the kernel's tree, unsigned, as DKMS has them without a key."""

    def prepare(payload: Payload) -> None:
        add_all(payload, image)
        for name in ("kt_plain", "kt_ten"):
            payload.write(f"{COPIES}/{name}.ko", _rebuilt(fixture_modules(image)[name].read_bytes()))
        (dummy,) = trees.module_dir(trees.suite_tree(image.suite)).glob("kernel/drivers/net/dummy.ko*")
        payload.write(f"{COPIES}/dummy.ko", _unsigned(read_module(str(dummy))))

    with boot("the guest that is verified", prepare=prepare) as machine:
        yield machine


def _verify(machine: Machine, status: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Module → code → what `kmodd verify --json` says."""
    ran = machine.run("journalctl --sync; kmodd verify --json", 300)
    assert ran.status == status, ran.output
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for line in ran.output.splitlines():
        each = json.loads(line)
        found.setdefault(each["module"], {})[each["what"]] = each
    return found


def test_a_clean_machine_is_silent(guest: Machine) -> None:
    """With modules from the initrd, from PID 1, for a device, and one that is unsigned and out of the kernel's tree."""
    assert plug(guest, DEVICES["e1000e"]).faults() == []
    guest.check("kmodd modprobe kt_ten")
    loads = guest.module_loads()
    assert any(load.in_initrd for load in loads)
    assert {"e1000e", "kt_ten"} <= {load.module for load in loads if load.comm == "kmodd-loader"}
    assert guest.check("cat /sys/module/kt_ten/taint").strip() == "OE"
    assert _verify(guest, 0) == {}
    (count,) = guest.check("kmodd verify -v", 300).splitlines()[-1:]
    assert count == f"{len(guest.modules())} modules, 0 findings"


def test_a_file_that_was_replaced_after_the_load_is_said(guest: Machine) -> None:
    """An information, as after DKMS: the kernel has the earlier build. Control: the test above."""
    guest.check(f"cd /usr/lib/modules/*/updates && busybox cp {COPIES}/kt_ten.ko new && busybox mv new kt_ten.ko")
    ((name, found),) = _verify(guest, 0).items()
    assert (name, list(found)) == ("kt_ten", ["replaced"])
    assert "kt_ten.ko was replaced at " in found["replaced"]["text"]
    assert found["replaced"]["build_id"] == bytes.fromhex(found["replaced"]["file_build_id"])[::-1].hex()


def test_a_changed_copy_is_found_with_who_loaded_it(guest: Machine) -> None:
    """By its build ID, or where that is the same by the missing signature; the process is that of the trace."""
    for name, code in (("kt_plain", "build-id"), ("dummy", "signature")):
        guest.check(f"busybox insmod {COPIES}/{name}.ko")
        found = _verify(guest, 1)
        assert set(found[name]) == {"not-kmodd", code}, found
        (load,) = (load for load in guest.module_loads() if load.module == name)
        assert load.comm != "kmodd-loader"
        assert found[name]["not-kmodd"]["loaded_by"] == {"comm": load.comm, "pid": load.pid}
        assert f"by {load.comm}[{load.pid}], and not by kmodd" in found[name]["not-kmodd"]["text"]
    assert "kt_plain" in guest.check("kmodd verify || test $? = 1", 300)


def test_a_load_is_said_when_it_happens(guest: Machine) -> None:
    """With who did it. Control: a load by kmodd is not said, but what there is already."""
    guest.check("busybox setsid kmodd verify --follow >/run/followed 2>&1 </dev/null & echo $! >/run/follower")
    until(lambda: "dummy: " in guest.check("cat /run/followed"), 120, "what is there already")
    guest.check("kmodd modprobe kt_chain_a")
    guest.check("busybox rmmod kt_plain")
    guest.check(f"busybox insmod {COPIES}/kt_plain.ko")
    *_, load = (load for load in guest.module_loads() if load.module == "kt_plain")
    line = f"kt_plain: was loaded after kmodd started, by {load.comm}[{load.pid}], and not by kmodd"
    until(lambda: line in guest.check("cat /run/followed"), 120, "the load is said")
    guest.check("busybox rmmod kt_plain")
    guest.check(f"busybox insmod {COPIES}/kt_plain.ko && busybox rmmod kt_plain")
    gone = re.compile(r"kt_plain: was loaded by .*\[[0-9]+\], and not by kmodd, and was removed again")
    until(lambda: gone.search(guest.check("cat /run/followed")), 120, "a load that was undone at once is said")
    guest.check(f"busybox insmod {COPIES}/kt_plain.ko")
    assert "kt_chain" not in guest.check("busybox kill $(cat /run/follower); cat /run/followed")


def test_who_it_was_outlives_a_crash_of_the_daemon(guest: Machine) -> None:
    """The kernel keeps the trace, and the journal what was there at the first start of this boot."""
    guest.check("systemctl kill -s KILL kmodd; systemctl start kmodd; kmodd settle", 120)
    found = _verify(guest, 1)
    assert {name: set(what) for name, what in found.items()} == {
        "kt_ten": {"replaced"}, "kt_plain": {"not-kmodd", "build-id"}, "dummy": {"not-kmodd", "signature"},
    }  # fmt: skip
    assert all(found[name]["not-kmodd"]["loaded_by"] for name in ("kt_plain", "dummy"))


def test_a_user_is_told_what_is_not_known(guest: Machine) -> None:
    """The journal and the trace are root's: nothing is said to be well. Control: root, above."""
    ran = guest.run(f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups kmodd verify", 300)
    assert ran.status == 1
    assert "root and the groups systemd-journal and adm may read the system's journal" in ran.output
