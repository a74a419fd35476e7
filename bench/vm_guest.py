"""Guests of `make bench-vm`, in which neither kmodd nor udevd has run, and either can be started.

Both are installed, with Debian's kmod, and their links in *.wants are removed. So a measurement starts one of them on a
booted machine that has loaded no modules for devices, and whose page cache does not contain its files.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from bench import vm_trace
from tests.vm.devices import AUDIO
from tests.vm.image import Image
from tests.vm.machine import GuestError, Machine
from tests.vm.payload import Payload, copy_into
from tests.vm.sleeping import add_devices, prepare_sleeping

Loader = Literal["kmodd", "udevd"]

_NIC: Final = "e1000e e1000e e1000 rtl8139 vmxnet3 pcnet virtio-net-pci virtio-net-pci".split()
_PLAIN: Final = (
    "virtio-rng-pci virtio-balloon-pci virtio-scsi-pci virtio-serial-pci virtio-keyboard-pci virtio-gpu-pci,romfile= "
    f"pvscsi ES1370,audiodev={AUDIO} mptsas1068 megasas,romfile= i6300esb sdhci-pci AC97,audiodev={AUDIO} "
    f"intel-hda hda-duplex,audiodev={AUDIO} pvpanic-pci "
    "nvme,serial=1,drive=boot-flash qemu-xhci,id=usb usb-storage,bus=usb.0,drive=boot-stick usb-kbd,bus=usb.0 "
    "usb-mouse,bus=usb.0 usb-net,bus=usb.0"
).split()
DEVICES_30: Final = (*(f"{nic},romfile=" for nic in _NIC), *_PLAIN)
"""`-device` arguments of devices that exist at boot; they fit on the root bus, so no port is needed."""

_DISKS: Final = ("boot-flash", "boot-stick")

_UDEVD_UNITS: Final = (
    "systemd-udevd-kernel.socket systemd-udevd-control.socket systemd-udevd.service systemd-udev-trigger.service"
)
_WANTS: Final = tuple(
    f"/usr/lib/systemd/system/{target}.wants/{unit}"
    for unit in _UDEVD_UNITS.split()
    for target in ("sysinit.target", "sockets.target")
)

_UNITS: Final[dict[Loader, tuple[str, ...]]] = {
    "kmodd": ("kmodd.service", "kmodd-loader@.service", "kmodd-requester@.service", "kmodd-stack@.service"),
    "udevd": ("systemd-udevd.service", "systemd-udev-trigger.service"),
}
"""Units of each loader, put in a slice of their own, whose accounting includes units that have ended."""

UDEVD: Final = "/usr/lib/systemd/systemd-udevd"
KMODD: Final = "/usr/bin/kmodd"
UDEV_RULE: Final = "/usr/lib/kmodd/udev-rule"

_PROBES: Final = Path(__file__).resolve().parent / "guest"
PROBES: Final = "/usr/lib/bench"
"""Directory of bench/guest/*.py in the guest."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds so far, of the loader's slice and of the whole machine, including kernel threads."""

    own: float
    machine: float

    def since(self, before: Cpu) -> Cpu:
        """Return the difference to an earlier reading."""
        return Cpu(self.own - before.own, self.machine - before.machine)


@contextlib.contextmanager
def guest(
    image: Image,
    name: str,
    *,
    conf: str = "",
    cpus: int = 2,
    devices: Sequence[str] = DEVICES_30,
    traced: bool = True,
    sleeping: bool = False,
) -> Iterator[Machine]:
    """Boot a guest with no modules loaded for its devices and no loader running.

    conf: lines of section [Kmodd]. devices: `-device` arguments. traced: start vm_trace, which slows events slightly.
    sleeping: it has the devices of tests/vm/sleeping.py, too. Byte code is compiled by `make install`, so its
    compilation is not measured.
    """
    with tempfile.TemporaryDirectory() as folder:
        payload = Payload.new(Path(folder, "root"), with_kmod=True)
        payload.install_kmodd(image.suite)
        payload.commands.remove("systemctl enable kmodd.service")
        payload.remove += _WANTS
        for loader, units in _UNITS.items():
            for unit in units:
                payload.write(f"/etc/systemd/system/{unit}.d/bench.conf", f"[Service]\nSlice={_slice(loader)}\n")
        copy_into(payload, _PROBES, PROBES)
        if sleeping:
            prepare_sleeping(payload, image)
        if conf:
            payload.write("/etc/kmodd/kmodd.conf", f"[Kmodd]\n{conf}\n")
        arguments: list[str] = []
        for disk in _DISKS:
            arguments += ["-blockdev", f"driver=null-co,node-name={disk},size=67108864,read-zeroes=on"]
        for device in devices:
            arguments += ["-device", device]
        with Machine(image, payload, name=name, cpus=cpus, arguments=arguments, boot_timeout=300) as machine:
            machine.wait_boot(300)
            if sleeping:
                add_devices(machine)
            if traced:
                vm_trace.start(machine)
            yield machine


def start(machine: Machine, loader: Loader, *, beside: bool = False) -> None:
    """Start a loader and wait until it has handled all existing devices.

    beside: start udevd after kmodd, as at boot, with its rule masked.
    """
    if loader == "kmodd":
        machine.run("systemctl reset-failed kmodd.service")  # five starts in five minutes are its limit
        machine.check("systemctl start kmodd.service", 120)
    if loader == "udevd" or beside:
        machine.check(f"systemctl start {_UDEVD_UNITS}", 300)
        machine.check("udevadm settle --timeout=280", 300)
    if loader == "kmodd":
        machine.check(_UNTIL_IDLE.format(group=_group(loader)), 300)
        machine.check("kmodd settle", 300)  # makes sure; called late, because starting Python takes CPU time


# Polls the CPU accounting: a waiting program would compete with kmodd for the processors.
_UNTIL_IDLE: Final = """\
used=0; quiet=0
while [ $quiet -lt 2 ]; do
    busybox sleep 1
    read -r _ now < {group}/cpu.stat
    if [ $((now - used)) -lt 20000 ]; then quiet=$((quiet + 1)); else quiet=0; fi
    used=$now
done"""


def stop_witness(machine: Machine) -> None:
    """Stop following the guest's journal, which takes more CPU time than writing it, and kmodd writes more."""
    machine.check("systemctl stop vm-journal.service")


def complaints(machine: Machine) -> list[str]:
    """Return kmodd's messages of priority warning and above."""
    return machine.check("journalctl --no-pager -t kmodd -p warning -o cat").splitlines()


def stop(machine: Machine, loader: Loader) -> None:
    """Stop a loader, its child processes and sockets."""
    if loader == "kmodd":
        machine.check("systemctl stop kmodd.service kmodd-loader.socket")
    else:
        machine.check(f"systemctl stop {_UDEVD_UNITS}")


def cpu(machine: Machine, loader: Loader) -> Cpu:
    """Return the CPU time so far; modprobes started by the kernel only count for the machine."""
    said = machine.check(f"busybox cat {_group(loader)}/cpu.stat 2>/dev/null; busybox head -n 1 /proc/stat")
    own = sum(int(line.split()[1]) for line in said.splitlines() if line.startswith("usage_usec"))
    ticks = next(line.split()[1:] for line in said.splitlines() if line.startswith("cpu "))
    busy = sum(int(ticks[place]) for place in (0, 1, 2, 5, 6))
    return Cpu(own / 1e6, busy / 100)


def memory(machine: Machine, loader: Loader) -> float:
    """Return the sum of proportional set sizes of all processes of a loader, in MB."""
    found = sizes(machine, loader)
    if not found:
        raise GuestError(f"no process of {loader} found")
    return sum(found.values())


def sizes(machine: Machine, loader: Loader, unit: str = "*") -> dict[int, float]:
    """Return the proportional set size of each process of a loader's units, in MB. unit: pattern of their names."""
    files = f"$(busybox find {_group(loader)} -path '{_group(loader)}/{unit}' -name cgroup.procs)"
    said = machine.check(
        f"for p in $(busybox cat {files}); do echo $p $(busybox grep ^Pss: /proc/$p/smaps_rollup); done 2>/dev/null"
    )
    fields = [line.split() for line in said.splitlines()]
    return {int(pid): int(size[1]) * 1024 / 1e6 for pid, *size in fields if size}


def seconds_of(machine: Machine, unit: str, property_name: str) -> float:
    """Return a ...TimestampMonotonic property of a unit in seconds."""
    return int(machine.check(f"systemctl show --value -p {property_name} {unit}")) / 1e6


def _slice(loader: Loader) -> str:
    return f"bench{loader}.slice"


def _group(loader: Loader) -> str:
    return f"/sys/fs/cgroup/{_slice(loader)}"
