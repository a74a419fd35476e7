"""Devices that failed for want of a firmware file are probed again once it is there: `FirmwareRetry`.

The kernel's log says who misses what; a loader writes the device's name into `drivers_probe`, for that takes as long
as the probe does.
"""

from __future__ import annotations

import time

from kmodd.daemon.reporter import Reporter
from kmodd.host import firmware_files
from kmodd.kernel.firmware import MAX_WAITING, FirmwareWaits, MissingFirmware, missing_firmware, probe_path
from kmodd.kernel.kmsg import KernelLine
from kmodd.loader.pool import Died, Loader, LoaderPool
from kmodd.loader.protocol import ProbeRequest
from kmodd.planning.record import FIRMWARE, INFO, NOTICE, Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_PROBES = 8
"""Probes under way; further devices wait until one is over."""

PAUSES = (5.0, 10.0, 20.0, 40.0, 80.0)
"""Seconds before each further try where no loader is to be had; after the last one a change of a file is waited for."""


class FirmwareRetry:
    """Who waits for which file, and the probes under way."""

    def __init__(self, root: str, release: str, report: Reporter, loaders: LoaderPool | None) -> None:
        """`loaders` None: a dry run, nothing is probed."""
        self._root = root
        self._release = release
        self._report = report
        self._loaders = loaders
        self._waits = FirmwareWaits()
        self._probes: dict[Loader, MissingFirmware] = {}
        self._directories: tuple[str, ...] = ()
        self._failures = 0
        """So often in a row no loader took a probe."""
        self._again_at: float | None = None
        """time.monotonic."""
        self._tried: dict[MissingFirmware, object] = {}
        """The files with which it was probed: if the kernel misses it still, it cannot use these."""

    def heard_kernel(self, lines: Iterable[KernelLine]) -> bool:
        """The kernel has said this: some of it may tell of missing firmware. True: there are more `directories` now."""
        before = self._directories
        for line in lines:
            missing = missing_firmware(line)
            if missing and probe_path(missing) and self._waits.add(missing):
                message = (
                    f"{missing.device[1:]} lacks the firmware {missing.name}: it is probed again once that is there"
                )
                fields = (("KMODD_FIRMWARE", missing.name),)
                self._report.tell(Record(FIRMWARE, NOTICE, message, fields))
                self._directories = firmware_files.watched_dirs(self._root, self._release, self._waits.names)
        return before != self._directories

    def directories(self) -> tuple[str, ...]:
        """Where a file that is waited for may appear."""
        return self._directories

    def files_may_have_come(self) -> None:
        """Something changed in one of these directories."""
        if self._loaders is None:
            return
        there = self._waits.came(lambda name: bool(firmware_files.present(self._root, self._release, name)))
        for number, missing in enumerate(there):
            files = firmware_files.present(self._root, self._release, missing.name)
            if self._tried.get(missing) == files:
                self._waits.add(missing)
                continue
            if len(self._probes) >= MAX_PROBES or not self._probe(missing, self._loaders):
                for later in there[number:]:
                    self._waits.add(later)
                self._try_again()
                break
            if len(self._tried) >= MAX_WAITING:
                self._tried.clear()
            self._tried[missing] = files
        self._directories = firmware_files.watched_dirs(self._root, self._release, self._waits.names)

    def _try_again(self) -> None:
        """In a while, if nothing is under way whose end would do it."""
        if self._probes or self._again_at is not None or self._failures >= len(PAUSES):
            return
        self._again_at = time.monotonic() + PAUSES[self._failures]
        self._failures += 1

    def tick(self) -> None:
        """Try again, if it is time."""
        if self._again_at is not None and time.monotonic() >= self._again_at:
            self._again_at = None
            self.files_may_have_come()

    def next_tick(self) -> float | None:
        """When (time.monotonic) `tick` has something to do; None: never."""
        return self._again_at

    def _probe(self, missing: MissingFirmware, loaders: LoaderPool) -> bool:
        """Have a loader do it. False: there is none to be had."""
        path, device = probe_path(missing) or ("", "")
        try:
            lane = loaders.get()
            if not lane.start(ProbeRequest(path.split("/")[3], device)):
                loaders.lost(lane)
                return False
        except OSError:
            return False
        self._probes[lane] = missing
        message = f"The firmware {missing.name} is there now: {device} is probed again"
        self._report.tell(Record(FIRMWARE, INFO, message, (("KMODD_FIRMWARE", missing.name),)))
        return True

    @property
    def lanes(self) -> tuple[Loader, ...]:
        """Connections to loaders, to be watched."""
        return tuple(self._probes)

    def heard(self, lane: Loader) -> None:
        """A loader is through with a probe, or gone. How the probe went, the kernel's log says."""
        heard = lane.receive()
        if heard is None or self._loaders is None:
            return
        missing = self._probes.pop(lane)
        if isinstance(heard, Died):
            self._loaders.lost(lane)
        else:
            self._loaders.give_back(lane)
        if heard == Died(begun=False):  # nobody has probed it
            self._tried.pop(missing, None)
            self._waits.add(missing)
            self._directories = firmware_files.watched_dirs(self._root, self._release, self._waits.names)
            self._try_again()
        else:
            self._failures = 0
            self.files_may_have_come()
