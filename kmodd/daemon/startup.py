"""The phases of the daemon's start: a `Startup`."""

from __future__ import annotations

from kmodd.dataclass import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Phase = Literal["boot_list", "late_opens", "running"]
else:
    Phase = str

BOOT_LIST_LIMIT = 20.0
"""Seconds that READY waits for the boot list: units ordered after kmodd rely on it, as on systemd-modules-load."""

WATCH_LIMIT = 10.0
"""Seconds after READY when files are watched though not all devices are answered."""


@dataclass(slots=True)
class Startup:
    """Where the start is.

    | phase      | event                                             | next       | what happens                     |
    | boot_list  | boot list answered, no module tree, or 20 s over  | late_opens | READY                            |
    | late_opens | nothing more can be planned                       | late_opens | the traces are opened            |
    | late_opens | devices answered, or 10 s over                    | running    | the file watch is opened         |

    What takes long and is not needed for the first load is opened late. Under an enforced policy the trace is opened
    before READY, as requests without a known requester would be refused.
    """

    phase: Phase = "boot_list"
    until: float = 0.0
    """When the phase ends at the latest (monotonic, seconds)."""

    def begin(self, now: float) -> None:
        """The boot list was queued."""
        self.until = now + BOOT_LIST_LIMIT

    def deadline(self) -> float | None:
        """When the phase ends at the latest (monotonic, seconds); None: it is the last one."""
        return None if self.phase == "running" else self.until

    def finish_boot_list(self, now: float, *, is_answered: bool) -> bool:
        """Go on to `late_opens` if the boot list is answered, or its time is over. True: this was the moment."""
        if self.phase != "boot_list" or not (is_answered or now >= self.until):
            return False
        self.phase, self.until = "late_opens", now + WATCH_LIMIT
        return True

    def can_open(self, now: float, *, devices_answered: bool) -> bool:
        """Whether the file watch is to be opened."""
        return self.phase == "late_opens" and (devices_answered or now >= self.until)

    def finish(self) -> None:
        """Everything is open."""
        self.phase = "running"
