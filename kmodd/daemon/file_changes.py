"""Which files are watched, and when a change of them is read: `FileChanges`."""

from __future__ import annotations

from kmodd.host.file_watch import Watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

SETTLED = 0.1
"""Seconds without a further change after which changed files are read: depmod replaces a dozen, one by one."""

SETTLED_AT_LAST = 0.5
"""Seconds after the first change after which they are read in any case."""


class FileChanges:
    """The watch, and the changes that are not read yet."""

    def __init__(self, now: float) -> None:
        """`now`: when files are read without a watch (monotonic, seconds)."""
        self._read_at = now
        self._is_opened = False
        """`open` was called."""
        self._watch: Watch | None = None
        self._changed: tuple[float, float] | None = None
        """When the first and the last change came (monotonic, seconds); None: all are read."""

    def open(self, now: float) -> Watch | None:
        """Open the watch; all files count as changed since they were read. Returns None where there is no inotify."""
        self._is_opened = True
        self._changed = (self._read_at, now)
        try:
            self._watch = Watch()
        except (OSError, ImportError):
            return None
        return self._watch

    def watch_directories(self, directories: Iterable[str]) -> list[OSError]:
        """Watch these directories, and no others. Returns the errors of those that cannot be watched."""
        return [*self._watch.set([*directories])] if self._watch else []

    def count_change(self, now: float) -> None:
        """Files count as changed at `now` (monotonic, seconds)."""
        self._changed = (self._changed[0] if self._changed else now, now)

    def on_readable(self, now: float) -> None:
        """The watch has reported something."""
        if self._watch is not None and self._watch.changed():
            self.count_change(now)

    def deadline(self) -> float | None:
        """When changes are to be read (monotonic, seconds); None: there are none."""
        if self._changed is None:
            return None
        first, last = self._changed
        return min(last + SETTLED, first + SETTLED_AT_LAST)

    def pop(self, now: float) -> bool:
        """Whether changes are to be read now; they count as read."""
        deadline = self.deadline()
        if deadline is None or now < deadline:
            return False
        self._changed = None
        return True

    @property
    def unread_since(self) -> float | None:
        """When files began to change that are not read (monotonic, seconds); None: all are read, as far as is known."""
        if not self._is_opened:
            return self._read_at
        return self._changed[0] if self._changed else None

    def close(self) -> None:
        """Watch no longer."""
        if self._watch is not None:
            self._watch.close()
