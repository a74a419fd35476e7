"""Module files that are links on a real machine: to a home folder, to a store of root's, to a file system that hangs.

The guest is laid out as people do: root links files into the tree, for which depmod has written the indexes. Witnesses:
/proc/modules, the kernel's own trace of loads, sysfs and the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.vm.devices import DEVICES
from tests.vm.fixture_modules import course_tree
from tests.vm.image import Image
from tests.vm.journal import Record, text
from tests.vm.machine import Machine
from tests.vm.payload import Payload
from tests.vm.scenario import plug, settle

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

HOME = "/home/student/course"
MISC = "kernel/drivers/misc"
STORE = "/opt/store"
HANGING = "/srv/mnt"
PATH = "export PATH=/usr/lib/kmodd/bin:/usr/sbin:/usr/bin:/sbin:/bin;"

MOUNT = """\
import ctypes, os, time
server = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={server},rootmode=40000,user_id=1000,group_id=1000,allow_other".encode()
failed = ctypes.CDLL(None, use_errno=True).mount(b"hanging", b"/srv/mnt", b"fuse", 0, options)
print(os.strerror(ctypes.get_errno()) if failed else "mounted", flush=True)
time.sleep(3600)
"""


@pytest.fixture(scope="module")
def guest(
    image: Image, boot: Callable[..., AbstractContextManager[Machine]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machine]:
    files = course_tree(image, tmp_path_factory.mktemp("tree"), MISC)
    tree = f"/usr/lib/modules/{image.release}"

    def prepare(payload: Payload) -> None:
        for path, data in files.items():
            name = path.rpartition("/")[2]
            if not path.startswith(MISC):
                payload.write(f"{tree}/{path}", data)
            elif name in ("mod1.ko", "mod2.ko", "params.ko"):
                folder = HANGING if name == "params.ko" else HOME
                payload.write(f"{folder}/{name}", data)
                payload.link(f"{tree}/{path}", f"{folder}/{name}")
        payload.write("/root/hang.py", MOUNT)

    with boot("the guest with links in its tree", with_kmod=True, prepare=prepare) as machine:
        script = [
            f"mkdir -p {STORE}",
            *(
                f"for f in $(find {tree}/kernel/drivers/net -name '{name}.ko*'); "
                f"do mv $f {folder}; ln -s {folder}/${{f##*/}} $f; done"
                for name, folder in (("pcnet32", STORE), ("ne2k-pci", "/home/student"))
            ),
            "chown -R 1000:1000 /home/student",
        ]
        machine.check("; ".join(script), 120)
        yield machine


def record_of(machine: Machine, module: str, result: str, mark: int) -> Record:
    """The record of a module with this result since `mark`."""
    wanted = (module, result)
    return machine.journal.wait_for(
        lambda each: (text(each, "KMODD_MODULE"), text(each, "KMODD_RESULT")) == wanted, 90.0, mark
    )


def test_the_course_of_a_home_folder(guest: Machine) -> None:
    """`sudo modprobe mod2`, `sudo modprobe -r mod2`; the record says whose the files are."""
    mark, before = guest.mark(), len(guest.module_loads())
    assert guest.run(f"{PATH} modprobe mod2", 90) == (0, "")
    assert guest.modules()["mod1"].split()[1:3] == ["1", "mod2,"]
    record = record_of(guest, "mod2", "loaded", mark)
    assert text(record, "PRIORITY") == "4"
    for name in ("mod1", "mod2"):
        whose = f"{name}'s file is a link to {HOME}/{name}.ko, and /home/student is owned by uid 1000"
        assert whose in text(record, "MESSAGE")
    loads = [load for load in guest.module_loads()[before:] if load.module.startswith("mod")]
    assert [(load.module, load.comm) for load in loads] == [("mod1", "kmodd-loader"), ("mod2", "kmodd-loader")]
    assert guest.run(f"{PATH} modprobe -r mod2", 90) == (0, "")
    assert not {"mod1", "mod2"} & set(guest.modules())


@pytest.mark.parametrize("gone", [f"{HOME}/mod1.ko", f"/lib/modules/$(uname -r)/{MISC}/mod1.ko"])
def test_indexes_that_name_a_link_or_target_that_is_gone(guest: Machine, gone: str) -> None:
    """As where depmod did not run since: an error names the file, with the daemon and without; nothing is loaded."""
    guest.check(f"mv {gone} /run/away")
    for call in ("modprobe mod2", "modprobe --no-daemon mod2"):
        ran = guest.run(f"{PATH} {call}", 90)
        assert ran.status == 1, ran.output
        assert "mod1.ko" in ran.output
        assert "No such file or directory" in ran.output
        assert not {"mod1", "mod2"} & set(guest.modules())
    explained = guest.run("kmodd explain mod2", 60)
    assert explained.status == 1, explained.output
    assert "mod1.ko" in explained.output
    guest.check(f"mv /run/away {gone}")
    assert guest.run(f"{PATH} modprobe mod2 && modprobe -r mod2", 90) == (0, "")


def test_a_device_gets_its_driver_by_a_link_to_roots_store(guest: Machine) -> None:
    assert plug(guest, DEVICES["pcnet"]).faults() == []
    assert "pcnet32" in guest.modules()
    guest.unplug(DEVICES["pcnet"])


def test_a_device_does_not_get_the_file_of_a_user_until_it_is_roots(guest: Machine) -> None:
    device = DEVICES["ne2k_pci"]
    mark = guest.mark()
    guest.plug(device)
    message = text(record_of(guest, "ne2k_pci", "denied", mark), "MESSAGE")
    assert "is a link to /home/student/ne2k-pci.ko" in message
    assert "/home/student is owned by uid 1000, not by root" in message
    assert "set ForeignModules=yes in kmodd.conf" in message
    assert "ne2k_pci" not in guest.modules()
    guest.unplug(device)
    settle(guest)
    guest.check("chown 0:0 /home/student /home/student/ne2k-pci.ko*")
    assert plug(guest, device).faults() == []
    guest.unplug(device)
    guest.check("chown 1000 /home/student; busybox rmmod ne2k_pci")


def test_with_the_setting_a_device_gets_the_file_of_a_user(guest: Machine) -> None:
    guest.check("mkdir -p /etc/kmodd; printf '[Kmodd]\\nForeignModules=yes\\n' >/etc/kmodd/kmodd.conf; kmodd reload")
    mark = guest.mark()
    guest.plug(DEVICES["ne2k_pci"])
    record = record_of(guest, "ne2k_pci", "loaded", mark)
    assert (text(record, "PRIORITY"), text(record, "KMODD_SOURCE")) == ("4", "uevent")
    guest.unplug(DEVICES["ne2k_pci"])
    guest.check("rm /etc/kmodd/kmodd.conf; kmodd reload")


def test_a_file_system_that_hangs_stops_only_who_opens_a_file_in_it(guest: Machine) -> None:
    """FUSE without a server: modprobe waits, as without kmodd; the daemon and its loaders do not."""
    guest.check("modprobe fuse")
    guest.check("(python3 /root/hang.py >/run/hanging 2>&1 &); until [ -s /run/hanging ]; do sleep 0.2; done", 60)
    assert guest.check("cat /run/hanging") == "mounted\n"
    assert guest.run(f"{PATH} timeout -s KILL 10 modprobe params", 60).status == 137
    assert "params" not in guest.modules()
    explained = guest.run("kmodd explain params", 60).output
    assert f"its file is a link to {HANGING}/params.ko, and {HANGING} is on a file system that may not" in explained
    assert plug(guest, DEVICES["e1000e"]).faults() == []
    assert guest.run(f"{PATH} modprobe mod2 && modprobe -r mod2", 90) == (0, "")
    assert "params" not in guest.check("kmodd status", 60)
