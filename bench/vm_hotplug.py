"""Benchmark of hotplug: time from a device's uevent to its module being live, minus the time in finit_module.

Several guests, in each of which kmodd is started and stopped in turn; udevd runs all the time, and loads modules while
kmodd does not run. Times are those of the kernel's trace, and the overhead of observation is the same for both.
"""

from __future__ import annotations

import re
import statistics
import time
from typing import Final

from bench import vm_guest, vm_trace
from bench.rows import Row, row
from bench.vm_guest import guest
from bench.vm_trace import Trace
from tests.vm import VmError, say
from tests.vm.devices import DEVICES, Device
from tests.vm.image import Image
from tests.vm.machine import Machine
from tests.vm.scenario import Plug, remove, settle

_PCI: Final = r"^add@/devices/pci.*/0000:[0-9a-f]+:[0-9a-f.]+$"
_VIRTIO: Final = r"^add@/devices/pci.*/virtio\d+$"
_USB: Final = r"^add@/devices/pci.*/\d+-[\d.]+:1\.0$"

KINDS: Final = {
    "e1000e": _PCI,
    "vmxnet3": _PCI,
    "i6300esb": _PCI,
    "rtl8139": _PCI,
    "nvme": _PCI,
    "virtio-rng-pci": _VIRTIO,
    "usb-storage": _USB,
    "usb-mouse": _USB,
}
"""Device → regular expression of the uevent that carries its module's modalias."""


def measure(image: Image, rounds: int) -> list[Row]:
    """Return a row per kind of device, and one for their geometric mean."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in KINDS}
    for number in range(1, rounds + 1):
        ours, theirs = _once(image)
        for name, pairs in found.items():
            pairs.append((ours[name], theirs[name]))
        say(f"hot-plug {number}: " + ", ".join(f"{name} {ours[name]:.1f}/{theirs[name]:.1f}" for name in KINDS))
    means = [
        (statistics.geometric_mean([ours for ours, _ in turn]), statistics.geometric_mean([peer for _, peer in turn]))
        for turn in zip(*found.values(), strict=True)
    ]
    rows = [row(f"hot-plug, geometric mean of {len(KINDS)} kinds", means, "ms; outside finit_module")]
    return rows + [row(f"hot-plug, {name}", pairs, "ms; outside finit_module") for name, pairs in found.items()]


def _once(image: Image) -> tuple[dict[str, float], dict[str, float]]:
    """Return the latencies of kmodd and of udevd by kind, in ms; a first turn, which reads files, does not count."""
    with guest(image, "hot-plug", devices=()) as machine:
        vm_guest.stop_witness(machine)
        vm_guest.start(machine, "udevd")
        machine.plug(DEVICES["qemu-xhci"])
        settle(machine)
        ours, theirs = {}, {}
        for _ in range(2):
            theirs = {name: latency(machine, DEVICES[name]) for name in KINDS}
            vm_guest.start(machine, "kmodd")
            ours = {name: latency(machine, DEVICES[name]) for name in KINDS}
            vm_guest.stop(machine, "kmodd")
    return ours, theirs


def latency(machine: Machine, device: Device) -> float:
    """Plug a device and return the latency in ms; then unplug it and unload its modules."""
    before = machine.modules()
    if there := device.modules & set(before):
        raise VmError(f"{device.name}: {', '.join(there)} is already loaded")
    vm_trace.clear(machine)
    machine.plug(device)
    deadline = time.monotonic() + 60
    while True:
        time.sleep(0.7)  # polling costs CPU time of the guest
        after = machine.modules()
        if device.modules <= set(after):
            break
        if time.monotonic() > deadline:
            raise VmError(f"{device.name}: {', '.join(device.modules - set(after))} was not loaded")
    settle(machine)
    trace = vm_trace.read(machine)
    after = machine.modules()
    machine.unplug(device)
    remove(machine, Plug(device, loaded=[name for name in reversed(after) if name not in before]))
    settle(machine)
    return outside(trace, device.module, KINDS[device.name]) * 1e3


def outside(trace: Trace, module: str, event: str) -> float:
    """Return the seconds from the first uevent matching `event` to `module` being live, minus those in finit_module."""
    sent = next((when for when, words in trace.sent if re.search(event, words)), None)
    live = next((call.end for call in trace.calls if call.module == module and call.result == 0), None)
    if sent is None or live is None:
        raise VmError(f"{module}: no uevent, or no load, in {trace}")
    return live - sent - vm_trace.covered(trace.calls, sent, live)
