"""Devices whose driver lacked a firmware file are probed again when the file exists: `FirmwareRetry`.

The kernel log tells which device misses which file. A loader writes the device's name to `drivers_probe`, as that
blocks for as long as the probe does.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass, field
from kmodd.engine.events import Command, StartProbe
from kmodd.engine.machine import Machine
from kmodd.engine.reporter import Reporter
from kmodd.kernel.firmware import MAX_WAITING, FirmwareWaits, MissingFirmware, missing_firmware, probe_path
from kmodd.kernel.kmsg import KernelLine
from kmodd.planning.record import FIRMWARE, INFO, NOTICE, Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_PROBES = 8
"""Probes at a time; further devices wait until one has ended."""

PAUSES = (5.0, 10.0, 20.0, 40.0, 80.0)
"""Seconds before each further attempt where no loader takes a probe; then until a file changes."""


@dataclass(slots=True)
class FirmwareRetry:
    """The devices that wait for a file, and the probes with loaders."""

    _machine: Machine
    _reporter: Reporter
    _emit: Callable[[Command], None]
    _next_number: Callable[[], int]
    _dry_run: bool = False
    """Nothing is probed."""
    directories: tuple[str, ...] = ()
    """Where a file that is waited for may appear, as to be opened."""
    _waits: FirmwareWaits = field(default_factory=FirmwareWaits)
    _probes: dict[int, MissingFirmware] = field(default_factory=dict)
    """By the number of the batch."""
    _tried: dict[MissingFirmware, object] = field(default_factory=dict)
    """The files a device was probed with: if the kernel still misses one, it cannot use these."""
    _failures: int = 0
    """Attempts in a row that no loader took."""
    _again_at: float | None = None
    """When to try again (monotonic, seconds)."""

    def read_kernel_log(self, lines: Iterable[KernelLine], now: float) -> None:
        """Note the missing files that the kernel log tells of."""
        before = self.directories
        for line in lines:
            missing = missing_firmware(line)
            if missing and probe_path(missing) and self._waits.add(missing):
                message = f"{missing.device[1:]} lacks firmware {missing.name}; it is probed again when the file exists"
                fields = (("KMODD_FIRMWARE", missing.name),)
                self._reporter.log(Record(FIRMWARE, NOTICE, message, fields))
                self._find_directories()
        if before != self.directories:
            self.files_changed(now)  # the file may have appeared since the kernel looked

    def files_changed(self, now: float) -> None:
        """Probe the devices whose file exists now."""
        if self._dry_run:
            return
        found = self._waits.came(lambda name: bool(self._machine.firmware(name)))
        for number, missing in enumerate(found):
            files = self._machine.firmware(missing.name)
            if self._tried.get(missing) == files:
                self._waits.add(missing)
                continue
            if len(self._probes) >= MAX_PROBES:
                for later in found[number:]:
                    self._waits.add(later)
                self._try_later(now)
                break
            if len(self._tried) >= MAX_WAITING:
                self._tried.clear()
            self._tried[missing] = files
            self._start(missing)
        self._find_directories()

    def _find_directories(self) -> None:
        self.directories = self._machine.firmware_directories(self._waits.names)

    def _start(self, missing: MissingFirmware) -> None:
        path, device = probe_path(missing) or ("", "")
        number = self._next_number()
        self._probes[number] = missing
        self._emit(StartProbe(number, path.split("/")[3], device))

    def _try_later(self, now: float) -> None:
        """Try again after a pause, if no probe is under way whose end would do so."""
        if self._probes or self._again_at is not None or self._failures >= len(PAUSES):
            return
        self._again_at = now + PAUSES[self._failures]
        self._failures += 1

    def tick(self, now: float) -> None:
        """Try again if that is due."""
        if self._again_at is not None and now >= self._again_at:
            self._again_at = None
            self.files_changed(now)

    def deadline(self) -> float | None:
        """When `tick` is due (monotonic, seconds); None: never."""
        return self._again_at

    def has(self, number: int) -> bool:
        """Whether the batch of this number is a probe under way."""
        return number in self._probes

    @property
    def is_probing(self) -> bool:
        """Whether a probe is with a loader."""
        return bool(self._probes)

    def begun(self, number: int) -> None:
        """A loader has taken a probe."""
        missing = self._probes[number]
        _, device = probe_path(missing) or ("", "")
        message = f"Firmware {missing.name} exists now; probing {device} again"
        self._reporter.log(Record(FIRMWARE, INFO, message, (("KMODD_FIRMWARE", missing.name),)))

    def ended(self, number: int, now: float, *, begun: bool) -> None:
        """A loader has finished a probe, or died; the kernel log tells the result. `begun`: False if none took it."""
        missing = self._probes.pop(number)
        if begun:
            self._failures = 0
            self.files_changed(now)
            return
        self._tried.pop(missing, None)
        self._waits.add(missing)
        self._find_directories()
        self._try_later(now)
