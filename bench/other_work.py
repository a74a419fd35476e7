"""How much other processes of this host work during a measurement: OtherWork."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

BUSY: Final = 0.05
"""Share of the processors' time that other processes may use, above which a measurement does not count."""


class OtherWork:
    """CPU time of the host since its construction that is neither this process's nor its ended children's."""

    def __init__(self) -> None:
        self._begin, self._before = time.monotonic(), _others()

    def share(self) -> float:
        """Return it as a share of the time of all processors, 0 to 1. Children that still run count as others."""
        passed = (time.monotonic() - self._begin) * (os.cpu_count() or 1)
        return max(_others() - self._before, 0.0) / passed


def busy_seconds(stat: str, ticks: int) -> float:
    """Return the CPU seconds since boot of all processes, interrupts and other guests of the host.

    stat: text of /proc/stat (proc_stat(5)). ticks: ticks a second.
    """
    user, nice, system, _idle, _iowait, interrupts, soft, steal, *_ = map(int, stat.split()[1:11])
    return (user + nice + system + interrupts + soft + steal) / ticks


def _others() -> float:
    own = os.times()
    busy = busy_seconds(Path("/proc/stat").read_text(), os.sysconf("SC_CLK_TCK"))
    return busy - (own.user + own.system + own.children_user + own.children_system)
