"""What the engine asks of this machine (engine/machine.py): files below one root."""

from __future__ import annotations

import os
import time

from kmodd.config.kmodd_conf import Settings
from kmodd.config.modprobe_d import Extensions
from kmodd.config.policy_d import Parsed
from kmodd.host import firmware_files
from kmodd.host.config_files import read_flags, read_rules, read_settings, settings_marks
from kmodd.host.driver_override import DriverOverrides
from kmodd.host.file_watch import Watch
from kmodd.host.kernel_facts import read_facts
from kmodd.host.tree import Tree
from kmodd.index.catalog import Mark, Snapshot
from kmodd.kernel.proc_modules import Loaded
from kmodd.planning.findings import Finding
from kmodd.planning.load_errors import KernelFacts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kmodd.host.device_names import DeviceNames


PACKED_BUDGET = 2**20
"""Bytes of compressed module files that a check of the configuration unpacks: 50 ms, and 5 MB of memory."""


class HostMachine:
    """The machine below `tree.root`."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._overrides = DriverOverrides(tree.root)
        self._watch: Watch | None = None
        self._device_names: DeviceNames | None = None
        self.processors = os.cpu_count() or 1

    def set_watch(self, watch: Watch) -> None:
        """Files are watched from now on."""
        self._watch = watch

    @property
    def waited(self) -> float:
        """Seconds that `overridden` has taken so far."""
        return self._overrides.waited

    def check_tree(self) -> None:
        """Raise NoTree where there is no module tree, or no index in it."""
        self._tree.check()

    def read_tree(self, extensions: Extensions, notice_edits: bool, *, whole: bool = True) -> Snapshot:
        """Read indexes and configuration of one moment; `whole`: False leaves the indexes for later. Raises nothing."""
        self._tree.configure(extensions, notice_edits)
        return self._tree.read(whole=whole)

    def is_current(self, snapshot: Snapshot) -> bool:
        """Whether nothing that `snapshot` was read from has changed since."""
        return self._tree.is_current(snapshot)

    def present(self, path: str) -> bool:
        """Whether the file printed as `path` exists; True where it lies behind a place that may not answer."""
        return self._tree.find(path) is not None

    def foreign(self, path: str) -> str:
        """Why the module file printed as `path` is not root's alone, as a predicate; empty: it is, or is missing."""
        return self._tree.foreign(path)

    def loaded(self) -> Loaded:
        """The modules that the kernel has now."""
        return self._tree.loaded()

    def settings(self) -> Settings:
        """kmodd.conf with its drop-ins."""
        return read_settings(self._tree.root)

    def settings_marks(self) -> tuple[tuple[str, Mark], ...]:
        """The marks of kmodd.conf, its drop-ins and the rule files."""
        return settings_marks(self._tree.root)

    def rules(self) -> Parsed:
        """The rules of policy.d."""
        return read_rules(self._tree.root)

    def flags(self) -> frozenset[str]:
        """The policy flags that are set."""
        return read_flags(self._tree.root)

    def uptime(self) -> float:
        """Seconds since boot, suspend included (CLOCK_BOOTTIME)."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def findings(self, snapshot: Snapshot) -> Sequence[Finding]:
        """The mistakes in the configuration, except those in files of packages."""
        from kmodd.host.config_check import read_setup  # only here: nothing waits for it
        from kmodd.planning.lint import lint

        found = lint(read_setup(self._tree, snapshot, packed_budget=PACKED_BUDGET))
        return [finding for finding in found if not finding.shipped]

    def facts(self) -> KernelFacts:
        """What may keep the kernel from taking a module."""
        return read_facts(self._tree.root)

    def overridden(self, devices: Iterable[str]) -> set[str]:
        """Those devices whose driver_override is set, or cannot be read because a probe holds the device."""
        return self._overrides.of(devices)

    def device_name(self, devpath: str) -> str:
        """What the device at a path below /sys is called, as far as `read_names` has read it; empty: unknown."""
        return self._device_names.get(devpath) if self._device_names else ""

    def read_names(self, devpaths: Sequence[str]) -> None:
        """Begin to read the names of the devices at these paths below /sys, in a child process."""
        if self._device_names is None:
            from kmodd.host.device_names import DeviceNames  # only here: READY does not wait for it

            self._device_names = DeviceNames(self._tree.root)
        self._device_names.start(devpaths)

    def has_driver(self, devpath: str) -> bool:
        """Whether a driver is bound to the device at a path below /sys, or the device is gone."""
        device = f"{self._tree.root}/sys{devpath}"
        return os.path.islink(f"{device}/driver") or not os.path.exists(device)

    @property
    def is_watched(self) -> bool:
        """Whether changes of files are reported."""
        return self._watch is not None

    def watch_state(self) -> int | None:
        """A number that grows with each change of a watched file; None where a file may have changed unseen."""
        return self._watch.state() if self._watch else None

    def firmware(self, name: str) -> tuple[Mark, ...]:
        """The marks of the files that the kernel would take for the firmware `name`; empty where there is none."""
        return firmware_files.present(self._tree.root, self._tree.release, name)

    def firmware_directories(self, names: Iterable[str]) -> tuple[str, ...]:
        """The directories in which files of these names may appear."""
        return firmware_files.watched_dirs(self._tree.root, self._tree.release, names)
