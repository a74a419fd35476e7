"""What the journal says of a job as a whole, whether it loads or removes: `Progress`. No I/O."""

from __future__ import annotations

from kmodd.dataclass import dataclass


@dataclass(slots=True)
class Progress:
    """When a job began, whether it has ended, and its number in the journal."""

    started: float = 0.0
    """When its first step began (monotonic, seconds); 0: none has."""
    number: int = 0
    """Of its request in the journal; 0: it has none yet."""
    _has_ended: bool = False

    def start(self, at: float) -> None:
        """Note when its first step began (monotonic, seconds); later calls change nothing."""
        self.started = self.started or at

    def set_number(self, number: int) -> None:
        """Give it the number of its request in the journal."""
        self.number = number

    def end(self) -> None:
        """Note that it has its last outcome."""
        self._has_ended = True

    def pop_end(self) -> bool:
        """Return whether it has ended since the last call."""
        has_ended, self._has_ended = self._has_ended, False
        return has_ended
