"""What a loader and its helper can do in systemd's sandbox, on a real kernel: what they are for, and no more."""

from __future__ import annotations

import errno
import gzip
import lzma
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import zstandard

from tests import trees
from tests.vm.devices import DEVICES, Device
from tests.vm.faults import let_go
from tests.vm.fixture_modules import add_module, fixture_modules
from tests.vm.image import Image
from tests.vm.journal import text
from tests.vm.machine import Machine
from tests.vm.payload import Payload
from tests.vm.scenario import plug, settle

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

_SLOW = Device("edu", "kt_slow", {"driver": "edu"})
_REFUSED = Device("pci-testdev", "kt_refuse", {"driver": "pci-testdev"})
_SECONDS = 300  # of kt_slow's init, by the options line below, unless it is let go

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "zstd": zstandard.ZstdCompressor().compress,
}
_PACKED = "/usr/lib/modules/{}/updates/packed"
_DAMAGED = (errno.EINVAL, errno.ENOEXEC)
"""The first by the loader; xz cut off by 6.12's kernel, zstd's beginning is taken for the module."""

_PROGRAM = """
import os, select, sys
sys.path.insert(0, "/usr/lib/kmodd")
from kmodd.loader.pool import Loader
from kmodd.loader.protocol import InsmodRequest, ProbeRequest, InsmodRunRequest
from kmodd.loader.spawner import Spawner
from kmodd.loader.kernel_stack import StackQuestion

def lane():
    connection = Spawner.of_systemd().connect()
    connection.settimeout(60)
    found = Loader(connection)
    found.receive()
    return found

def do(call):
    found = lane()
    found.start(call)
    return found.receive()

def stack(pid):
    question = StackQuestion(pid, None)
    while question.answer() is None:
        select.select([question], [], [])
    return question.answer()
"""


@pytest.fixture(scope="module")
def guest(image: Image, boot: Callable[..., AbstractContextManager[Machine]]) -> Iterator[Machine]:
    modules = fixture_modules(image)

    def prepare(payload: Payload) -> None:
        add_module(payload, image, modules["kt_slow"], ("pci:v00001234d000011E8sv*sd*bc*sc*i*",))
        add_module(payload, image, modules["kt_refuse"], ("pci:v00001B36d00000005sv*sd*bc*sc*i*",))
        payload.write("/etc/modprobe.d/slow.conf", f"options kt_slow seconds={_SECONDS}\n")
        payload.write("/root/ask.py", _PROGRAM)
        plain = _dummy(image)
        for name, pack in PACKERS.items():
            payload.write(f"{_PACKED.format(image.release)}.{name}", pack(plain))

    with boot("the guest with the sandbox under test", prepare=prepare) as machine:
        yield machine


def _dummy(image: Image) -> bytes:
    """The module dummy of the image's kernel, unpacked."""
    (path,) = (trees.module_dir(trees.suite_tree(image.suite)) / "kernel/drivers/net").glob("dummy.ko*")
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def _ask(machine: Machine, expression: str) -> str:
    return machine.check(f"cd /root && python3 -B -c 'from ask import *; print({expression})'").strip()


def test_a_device_is_probed_again_and_the_rest_of_sys_is_read_only(guest: Machine) -> None:
    """Firmware that came late: only drivers_probe makes the kernel look for the device's driver once more."""
    assert plug(guest, DEVICES["e1000e"]).faults() == []
    settle(guest)
    drivers = "/sys/bus/pci/drivers/e1000e"
    device = guest.check(f"ls {drivers} | grep ^0000:").split()[-1]
    guest.check(f"echo {device} > {drivers}/unbind")
    assert guest.run(f"test -e {drivers}/{device}").status == 1
    assert _ask(guest, f'do(ProbeRequest("pci", "{device}")).errno') == "0"
    assert guest.run(f"test -e {drivers}/{device}").status == 0
    assert _ask(guest, 'do(ProbeRequest("pci", "0000:ff:1f.7")).errno') == "19"  # ENODEV
    mounts = _ask(guest, 'open(f"/proc/{lane().pid}/mountinfo").read()')
    flags = {line.split()[4]: line.split()[5].split(",")[0] for line in mounts.splitlines()}
    assert (flags["/sys"], flags["/sys/bus"], flags["/proc/sys"]) == ("ro", "rw", "ro")


def test_the_kernel_stack_of_a_loader_in_an_init_is_told(guest: Machine) -> None:
    guest.plug(_SLOW)
    deadline = time.monotonic() + 60.0
    while "Loading" not in guest.modules().get("kt_slow", ""):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    loader = [load.pid for load in guest.module_loads() if load.module == "kt_slow"][-1]
    stack = _ask(guest, f"stack({loader})")
    assert "Loading" in guest.modules()["kt_slow"], "the test was too slow to show anything"
    assert "msleep" in stack
    assert "[kt_slow]" in stack
    assert "finit_module" in stack
    assert _ask(guest, "stack(1)") == "()"
    # The control: a process with the daemon's capabilities and no helper sees nothing.
    bare = "setpriv --bounding-set=-all,+net_admin --inh-caps=-all"
    assert guest.run(f"{bare} cat /proc/{loader}/stack").status != 0
    assert guest.run(f"cat /proc/{loader}/stack").status == 0
    let_go(guest)


def test_a_module_that_others_can_write_is_not_loaded(guest: Machine) -> None:
    file = f"/usr/lib/modules/{guest.check('uname -r').strip()}/updates/kt_refuse.ko"
    guest.check(f"chmod g+w {file}")
    mark = guest.journal.mark()
    guest.plug(_REFUSED)
    record = guest.journal.wait_for(lambda each: text(each, "KMODD_MODULE") == "kt_refuse", timeout=60.0, since=mark)
    assert text(record, "KMODD_RESULT") == "denied"
    assert "is writable by its group, gid 0" in text(record, "MESSAGE")
    settle(guest)
    assert "kt_refuse" not in [load.module for load in guest.module_loads()]


@pytest.mark.parametrize("packer", [*PACKERS])
def test_a_packed_module_is_unpacked(guest: Machine, packer: str) -> None:
    """By the kernel where /sys/module/compression names the format, else by the loader, within its sandbox."""
    packed = f"{_PACKED.format(guest.image.release)}.{packer}"
    assert _ask(guest, f'do(InsmodRunRequest((InsmodRequest("{packed}", "numdummies=0"),), ("dummy",))).errno') == "0"
    assert "Live" in guest.modules()["dummy"]
    guest.remove_module("dummy")
    # A tool uses the same code in its own process, which can be traced.
    trace = "strace -f --seccomp-bpf -qq -e trace=finit_module,init_module -o /run/calls /usr/lib/kmodd/bin/insmod"
    guest.check(f"{trace} {packed} numdummies=0", 90)
    guest.remove_module("dummy")
    (call,) = re.findall(r"^\d+ +(f?init_module)\(.*\) += 0$", guest.check("cat /run/calls"), re.MULTILINE)
    by_kernel = packer in guest.run("cat /sys/module/compression").output.split()
    assert call == ("finit_module" if by_kernel else "init_module")
    assert by_kernel == (packer == "xz" and guest.image.suite != "bookworm"), "Debian's kernels unpack xz since 6.12"
    guest.check(f"head -c 100 {packed} > {packed}.cut")
    failed = _ask(guest, f'do(InsmodRunRequest((InsmodRequest("{packed}.cut", ""),), ("dummy",))).errno')
    assert int(failed) in _DAMAGED
    assert "dummy" not in guest.modules()
