"""A daemon that no systemd starts: it makes its own loaders, then gives up for good what it does not need."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from tests.vm.devices import DEVICES
from tests.vm.faults import until
from tests.vm.machine import Machine

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

_SYS_MODULE, _SYS_PTRACE = 16, 19  # include/uapi/linux/capability.h

_TRY = """
import ctypes, sys
sys.path.insert(0, "/usr/lib/kmodd")
from kmodd.loader.syscalls import LinuxKernel
from kmodd.loader.capabilities import drop
kernel = LinuxKernel()
if sys.argv[1] == "drop":
    drop(())
try:
    kernel.init_module(b"not a module", "")
except OSError as error:
    print(error.errno)
"""


@pytest.fixture(scope="module")
def guest(boot: Callable[..., AbstractContextManager[Machine]]) -> Iterator[Machine]:
    with boot("the guest without a started kmodd", append="kmodd=off", active=False) as machine:
        machine.check("systemctl mask --runtime --now systemd-udevd.service systemd-udevd-kernel.socket")
        machine.check("setsid /usr/bin/kmodd run </dev/null >/run/said 2>&1 &")
        until(lambda: machine.run("/usr/bin/kmodd settle --timeout 60", 70).status == 0, 180.0, "the daemon is there")
        yield machine


def _set(machine: Machine, pid: str, name: str) -> int:
    status = machine.check(f"busybox cat /proc/{pid}/status")
    found = re.search(rf"^{name}:\t([0-9a-f]+)$", status, re.MULTILINE)
    assert found, status
    return int(found[1], 16)


def test_the_daemon_keeps_no_capability_and_its_loaders_load(guest: Machine) -> None:
    """A daemon without systemd spawns its loaders and the reader of /proc, and then gives up everything, for good."""
    daemon = guest.check("pgrep -o -f 'bin/kmodd run'").split()[0]
    reader = guest.check("pgrep -f 'cli[.]requester'").split()[0]
    for name in ("CapEff", "CapPrm", "CapBnd"):
        assert _set(guest, daemon, name) == 0, name
        assert _set(guest, reader, name) == 1 << _SYS_PTRACE, name
    spawner = guest.check("pgrep -x kmodd-spawner").split()[0]
    assert _set(guest, spawner, "CapEff") >> _SYS_MODULE & 1
    guest.plug(DEVICES["virtio-rng-pci"])
    guest.check("/usr/bin/kmodd settle --timeout 60", 70)
    assert "Live" in guest.modules()["virtio_rng"]
    assert [load.comm for load in guest.module_loads() if load.module == "virtio_rng"] == ["kmodd-loader"]


def test_after_the_drop_the_kernel_takes_no_module(guest: Machine) -> None:
    """And the control: before it, the kernel refuses the same bytes for what they are."""
    guest.check(f"cat > /run/try.py <<'EOF'\n{_TRY}\nEOF")
    assert guest.check("python3 /run/try.py drop").strip() == "1"  # EPERM
    assert guest.check("python3 /run/try.py keep").strip() == "8"  # ENOEXEC
