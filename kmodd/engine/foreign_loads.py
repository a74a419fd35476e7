"""Modules that the kernel is starting for another process, or for an earlier daemon: `ForeignLoads`.

A load of such a module, or of one that needs it, would only block in the kernel. The kernel does not report when such
a start fails, so /proc/modules is read again and again.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass, field
from kmodd.engine.reporter import Reporter
from kmodd.kernel.proc_modules import Loaded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

EVERY = 0.5
"""Seconds between two reads of /proc/modules while a start is followed."""


@dataclass(slots=True)
class _Start:
    since: float
    """When it was seen first (monotonic, seconds)."""
    adopted: bool
    """It was under way when the daemon started: its end is recorded."""
    stuck: bool = False

    def give_up(self) -> None:
        """It takes too long: it is not waited for."""
        self.stuck = True


@dataclass(slots=True)
class ForeignLoads:
    """The starts that are followed, by module."""

    _starts: dict[str, _Start] = field(default_factory=dict)
    _next_look: float = 0.0

    def adopt(self, names: Iterable[str], now: float) -> None:
        """Follow starts that were under way when the daemon started."""
        for name in names:
            self._starts[name] = _Start(now, adopted=True)

    def follow(self, name: str, now: float) -> None:
        """Follow a start that a job waits for."""
        self._starts.setdefault(name, _Start(now, adopted=False))

    def can_wait(self, name: str) -> bool:
        """Whether a start of `name` is worth waiting for: it is not known to hang."""
        return name not in self._starts or not self._starts[name].stuck

    def awaited(self) -> list[str]:
        """The modules whose start is waited for."""
        return [name for name, start in self._starts.items() if not start.stuck]

    def stuck(self) -> list[str]:
        """The modules whose start hangs."""
        return [name for name, start in self._starts.items() if start.stuck]

    def is_due(self, now: float) -> bool:
        """Whether `look` is due."""
        return bool(self._starts) and now >= self._next_look

    def look(self, loaded: Loaded, limit: float, reporter: Reporter, now: float) -> bool:
        """Compare with what the kernel has now. True: a start that was adopted, or given up, has ended.

        `limit`: seconds after which a start counts as stuck.
        """
        self._next_look = now + EVERY
        ended = False
        for name, start in list(self._starts.items()):
            state, seconds = loaded.state(name), now - start.since
            if state != "coming":
                del self._starts[name]
                if start.adopted or start.stuck:
                    reporter.log_foreign_end(name, state == "live", seconds)
                    ended = True
            elif not start.stuck and seconds > limit:
                start.give_up()
                reporter.log_foreign_hang(name, seconds)
        return ended

    def deadline(self) -> float | None:
        """When `look` is due (monotonic, seconds); None: no start is followed."""
        return self._next_look if self._starts else None
