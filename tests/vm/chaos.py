"""The faults of the chaos test: each is one act on a guest, counted, and all of them are mended at the end."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Final

from tests.vm.devices import DEVICES, Device
from tests.vm.faults import appear, vanish
from tests.vm.machine import Machine

#: What is plugged and unplugged, on PCI and on USB.
TYPES: Final = (
    "e1000e", "rtl8139", "ne2k_pci", "pcnet", "tulip", "vmxnet3", "virtio-net-pci", "virtio-rng-pci",
    "virtio-balloon-pci", "virtio-keyboard-pci", "lsi53c895a", "ich9-ahci", "i6300esb", "sdhci-pci", "usb-kbd",
    "usb-net", "usb-tablet",
)  # fmt: skip

_PCI_AT_ONCE: Final = 6  # of eight root ports
_FAKES: Final = ("kt_plain", "kt_late", "kt_unknown", "kt_refuse", "kt_chain_d")
_BROKEN: Final = "/etc/modprobe.d/zz-broken.conf"
_BROKEN_TOO: Final = "/etc/kmodd/kmodd.conf.d/zz-broken.conf"


class Chaos:
    """Draws acts from `rng` and does them to `machine`; `counts`: act → how often."""

    def __init__(self, machine: Machine, rng: random.Random) -> None:
        self._machine, self._rng = machine, rng
        self._tree = f"/usr/lib/modules/{machine.image.release}"
        self._plugged: list[Device] = []
        self.ever: set[str] = set()
        """Modules of every device that was ever plugged."""
        self.counts: Counter[str] = Counter()
        self._mild: list[tuple[Callable[[], None], int]] = [
            (self.plug, 8), (self.unplug, 3), (self.devices_by_the_dozen, 3), (self.synthetic_events, 2),
            (self.rename_index, 2), (self.touch_index, 1), (self.break_configuration, 2), (self.mend_configuration, 2),
            (self.journald_stopped, 1), (self.journald_goes_on, 2), (self.reload, 1), (self.idle_loader_killed, 2),
        ]  # fmt: skip
        self._harsh = [
            *self._mild,
            (self.daemon_killed, 5), (self.any_loader_killed, 3), (self.spawner_killed, 2), (self.restart, 2),
        ]  # fmt: skip

    def act(self, *, harsh: bool) -> None:
        """One drawn act; only a harsh one ends the daemon or a loader at work."""
        acts = self._harsh if harsh else self._mild
        (act,) = self._rng.choices([act for act, _ in acts], [weight for _, weight in acts])
        self.counts[act.__name__] += 1
        act()

    def mend(self) -> None:
        """Undo what would keep the machine from being well; devices stay as they are."""
        self._sh("systemctl kill --signal=CONT systemd-journald")
        self.mend_configuration()
        self._sh("systemctl reset-failed kmodd; systemctl start kmodd", 90)

    # ── acts ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def plug(self) -> None:
        """A device comes."""
        full = sum(device.bus == "pci" for device in self._plugged) >= _PCI_AT_ONCE
        there = {device.name for device in self._plugged}
        free = [DEVICES[n] for n in TYPES if n not in there and not (full and DEVICES[n].bus == "pci")]
        if not free:
            return
        device = self._rng.choice(free)
        self._machine.plug(device)
        self._plugged.append(device)
        self.ever |= device.modules

    def unplug(self) -> None:
        """A device goes."""
        if self._plugged:
            device = self._plugged.pop(self._rng.randrange(len(self._plugged)))
            self._machine.unplug(device, 90.0)

    def devices_by_the_dozen(self) -> None:
        """Many devices of one kind come or go at once; one kind refuses, one lacks a driver."""
        name = self._rng.choice((*_FAKES, "nobody"))
        if self._rng.random() < 0.4:
            vanish(self._machine, name)
        else:
            appear(self._machine, name, self._rng.randrange(1, 60))
            self.ever |= {name} & {"kt_plain", "kt_late", "kt_unknown"}

    def synthetic_events(self) -> None:
        """Write `add` into uevent files, as `udevadm trigger` does."""
        bus = self._rng.choice(("pci", "platform", "usb", "virtio"))
        self._sh(f"for d in /sys/bus/{bus}/devices/*/uevent; do echo add >$d; done")

    def rename_index(self) -> None:
        """The indexes are replaced by copies, one rename after the other."""
        names = self._rng.sample(("alias.bin", "dep.bin", "symbols.bin", "softdep", "builtin.bin"), 3)
        for name in names:
            self._sh(
                f"cp {self._tree}/modules.{name} {self._tree}/new && mv {self._tree}/new {self._tree}/modules.{name}"
            )

    def touch_index(self) -> None:
        """The index has a new time and nothing else."""
        self._sh(f"touch {self._tree}/modules.alias.bin {self._tree}/modules.dep.bin")

    def break_configuration(self) -> None:
        """Lines that mean nothing."""
        self._sh(f"mkdir -p /etc/kmodd/kmodd.conf.d; echo 'options' >{_BROKEN}; echo 'alias x' >>{_BROKEN}")
        self._sh(f"printf '[Kmodd]\\nLanes=many\\nNonsense\\n' >{_BROKEN_TOO}")

    def mend_configuration(self) -> None:
        """They go again."""
        self._sh(f"rm -f {_BROKEN} {_BROKEN_TOO}")

    def journald_stopped(self) -> None:
        """journald sleeps, its socket fills."""
        self._sh("systemctl kill --signal=STOP systemd-journald")

    def journald_goes_on(self) -> None:
        """It wakes."""
        self._sh("systemctl kill --signal=CONT systemd-journald")

    def reload(self) -> None:
        """SIGHUP."""
        self._sh("systemctl kill --signal=HUP --kill-who=main kmodd")

    def idle_loader_killed(self) -> None:
        """Loaders that have nothing to do are killed; in state S they wait for a call."""
        self._sh("for p in $(busybox pidof kmodd-loader); do grep -q 'State:.S' /proc/$p/status && kill -KILL $p; done")

    def any_loader_killed(self) -> None:
        """All of them, in an init or not."""
        self._sh("busybox killall -KILL kmodd-loader")

    def spawner_killed(self) -> None:
        """What makes the loaders; systemd tells those of its unit to end, and they do when they have nothing to do."""
        self._sh("busybox killall -KILL kmodd-spawner")

    def daemon_killed(self) -> None:
        """SIGKILL for the daemon; systemd starts it again."""
        self._sh("systemctl reset-failed kmodd; systemctl kill --signal=KILL --kill-who=main kmodd")

    def restart(self) -> None:
        """As an administrator does, without waiting."""
        self._sh("systemctl reset-failed kmodd; systemctl restart --no-block kmodd")

    def _sh(self, command: str, timeout: float = 60.0) -> None:
        self._machine.run(command, timeout)  # a refusal (the daemon is not there just now) is part of it
