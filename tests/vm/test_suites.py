"""What differs from one Debian suite's kernel and systemd to the next, on a guest of each, in one boot.

Coldplug and hot-plug are `test_demo.py`'s. All else is shown on the other suites by `make test-long`. On the
machine's own suite all of this has larger tests, so there it is long.
"""

from __future__ import annotations

import errno
import gzip
import lzma
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import zstandard

from tests import trees
from tests.differential.kmod_peer import without_places
from tests.vm.devices import DEVICES
from tests.vm.faults import appear, let_go, record_of, state, trace_again, until_state
from tests.vm.image import Image
from tests.vm.journal import text
from tests.vm.machine import Machine
from tests.vm.payload import Payload
from tests.vm.using import PRESETS, asked, prepare_using, use, wrong_requester

pytestmark = [pytest.mark.vm, pytest.mark.suites(own="long"), pytest.mark.timeout(900)]

_CONF = "StuckAfterSec=4\nPolicy=enforce\n"
_PRESET = "50-no-unprivileged-autoload.conf"
_SCTP = "socket 2 1 132"
_PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "zst": zstandard.ZstdCompressor().compress,
}
_FORMATS = {"gz": "gzip", "xz": "xz", "zst": "zstd"}
"""In /sys/module/compression."""

_TOOLS = (
    "lsmod",
    "modinfo -F depends e1000e",
    "modprobe -D kt_deep",
    "modprobe -v minix",
    "modprobe --first-time minix",
    "modprobe minix nosuch=1",
    "modprobe -v -r minix",
    "modprobe -r minix",
    "modprobe nosuch",
    "rmmod nosuch",
    "insmod /root/nosuch.ko",
)
_OURS, _KMODS = "/usr/lib/kmodd/bin:/usr/sbin:/usr/bin", "/usr/sbin:/usr/bin"
"""PATH of the tools."""


@pytest.fixture(scope="module")
def guest(image: Image, boot: Callable[..., AbstractContextManager[Machine]]) -> Iterator[Machine]:
    (path,) = (trees.module_dir(trees.suite_tree(image.suite)) / "kernel/drivers/net").glob("dummy.ko*")
    data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()

    def prepare(payload: Payload) -> None:
        prepare_using(payload, image, conf=_CONF)
        payload.write("/etc/modules-load.d/bus.conf", "kt_bus\n")
        payload.write("/etc/modprobe.d/slow.conf", "options kt_slow seconds=300\n")
        payload.link(f"/etc/kmodd/policy.d/{_PRESET}", f"{PRESETS}/{_PRESET}")
        for suffix, pack in _PACKERS.items():
            payload.write(f"/root/dummy.ko.{suffix}", pack(data))

    with boot(f"the guest of {image.suite}", with_kmod=True, prepare=prepare) as machine:
        yield machine


def test_sys_is_read_only_for_a_loader_but_for_the_buses(guest: Machine) -> None:
    """It writes drivers_probe of a bus. The spawner's mounts are those of its loaders."""
    lines = guest.check("cat /proc/$(pgrep -o kmodd-spawner)/mountinfo").splitlines()
    flags = {line.split()[4]: line.split()[5].split(",")[0] for line in lines}
    assert (flags["/sys"], flags["/sys/bus"], flags["/proc/sys"]) == ("ro", "rw", "ro")


@pytest.mark.parametrize("suffix", [*_PACKERS])
def test_a_packed_module_is_unpacked_by_the_kernel_if_it_can(guest: Machine, suffix: str) -> None:
    trace = "strace -f --seccomp-bpf -qq -e trace=finit_module,init_module -o /run/calls"
    guest.check(f"{trace} /usr/lib/kmodd/bin/insmod /root/dummy.ko.{suffix} numdummies=0", 90)
    assert state(guest, "dummy") == "Live"
    guest.remove_module("dummy")
    by_kernel = _FORMATS[suffix] in guest.run("cat /sys/module/compression").output.split()
    assert by_kernel == (suffix == "xz" and guest.image.suite != "bookworm")
    assert (" finit_module(" in guest.check("cat /run/calls")) == by_kernel


def test_the_tools_answer_as_kmods(guest: Machine) -> None:
    """Status and output, but for the kernel's own lines, and the places in its source that kmod 30 names."""
    theirs, ours = ([_answer(guest, command, path) for command in _TOOLS] for path in (_KMODS, _OURS))
    assert ours == theirs
    assert {status for status, _ in theirs} == {0, 1}


def _answer(machine: Machine, command: str, path: str) -> tuple[int, str]:
    ran = machine.run(f"PATH={path}:/bin {command} 2>&1", 90)
    lines = without_places(ran.output.encode()).decode().splitlines()
    return ran.status, "\n".join(line for line in lines if ": ERROR: the kernel says: " not in line)


def test_a_user_is_refused_what_root_makes_the_kernel_load(guest: Machine) -> None:
    mark = guest.journal.mark()
    used = use(guest, "user", _SCTP)
    assert used.only == errno.EPROTONOSUPPORT
    assert wrong_requester(asked(guest, "sctp", "denied", mark), "user", used.pid) == []
    used = use(guest, "root", _SCTP)
    assert used.only == 0
    assert wrong_requester(asked(guest, "sctp", "loaded", mark), "root", used.pid) == []


def test_a_hanging_init_is_named_with_its_stack_and_others_are_served(guest: Machine) -> None:
    mark = guest.journal.mark()
    appear(guest, "kt_slow")
    assert "kt_slow_init" in text(record_of(guest, "kt_slow", "stuck", mark), "KMODD_STACK")
    guest.plug(DEVICES["virtio-rng-pci"])
    until_state(guest, "virtio_rng", "Live")
    assert state(guest, "kt_slow") == "Loading"
    let_go(guest)
    record_of(guest, "kt_slow", "loaded", mark)


def test_an_oops_in_an_init_is_recorded_and_the_next_device_is_served(guest: Machine) -> None:
    """The last one: the kernel is no good for anything else."""
    mark = guest.journal.mark()
    appear(guest, "kt_oops")
    record = record_of(guest, "kt_oops", "crashed", mark)
    trace_again(guest)
    assert "kt_oops" in text(record, "KMODD_KERNEL_LOG")
    appear(guest, "kt_plain")
    record_of(guest, "kt_plain", "loaded", mark)
