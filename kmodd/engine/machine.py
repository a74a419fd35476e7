"""What the engine may ask of the machine: a `Machine`. No question has an effect; one may take a moment (`waited`)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Protocol

    from kmodd.config.kmodd_conf import Settings
    from kmodd.config.modprobe_d import Extensions
    from kmodd.config.policy_d import Parsed
    from kmodd.index.catalog import Mark, Snapshot
    from kmodd.kernel.proc_modules import Loaded
    from kmodd.planning.findings import Finding
    from kmodd.planning.load_errors import KernelFacts
else:
    Protocol = object


class Machine(Protocol):
    """The files below /etc, /lib/modules, /proc and /sys that decisions rest on. host/machine.py is the real one."""

    @property
    def processors(self) -> int:
        """Number of processors."""

    @property
    def waited(self) -> float:
        """Seconds that `overridden` has taken so far: the one question whose answer may take a while."""

    def check_tree(self) -> None:
        """Raise NoTree where there is no module tree, or no index in it."""

    def read_tree(self, extensions: Extensions, notice_edits: bool, *, whole: bool = True) -> Snapshot:
        """Read indexes and configuration of one moment; `whole`: False leaves the indexes for later. Raises nothing."""

    def is_current(self, snapshot: Snapshot) -> bool:
        """Whether nothing that `snapshot` was read from has changed since."""

    def present(self, path: str) -> bool:
        """Whether the file printed as `path` exists."""

    def foreign(self, path: str) -> str:
        """Why the module file printed as `path` is not root's alone, as a predicate; empty: it is, or is missing."""

    def loaded(self) -> Loaded:
        """The modules that the kernel has now."""

    def settings(self) -> Settings:
        """kmodd.conf with its drop-ins."""

    def settings_marks(self) -> tuple[tuple[str, Mark], ...]:
        """The marks of kmodd.conf, its drop-ins and the rule files."""

    def rules(self) -> Parsed:
        """The rules of policy.d."""

    def flags(self) -> frozenset[str]:
        """The policy flags that are set."""

    def uptime(self) -> float:
        """Seconds since boot, suspend included (CLOCK_BOOTTIME)."""

    def findings(self, snapshot: Snapshot) -> Sequence[Finding]:
        """The mistakes in the configuration, except those in files of packages."""

    def facts(self) -> KernelFacts:
        """What may keep the kernel from taking a module."""

    def overridden(self, devices: Iterable[str]) -> set[str]:
        """Those devices whose driver_override is set, or cannot be read because a probe holds the device."""

    def device_name(self, devpath: str) -> str:
        """What the device at a path below /sys is called; empty: it has no name, or it was not read yet."""

    def has_driver(self, devpath: str) -> bool:
        """Whether a driver is bound to the device at a path below /sys, or the device is gone."""

    @property
    def is_watched(self) -> bool:
        """Whether changes of files are reported."""

    def watch_state(self) -> int | None:
        """A number that grows with each change of a watched file; None where a file may have changed unseen."""

    def firmware(self, name: str) -> tuple[Mark, ...]:
        """The marks of the files that the kernel would take for the firmware `name`; empty where there is none."""

    def firmware_directories(self, names: Iterable[str]) -> tuple[str, ...]:
        """The directories in which files of these names may appear."""
