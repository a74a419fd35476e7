"""Which devices have `driver_override` set: `DriverOverrides`.

Reading the file takes the device's lock, which a probe holds, and cannot be interrupted; so child processes read. The
device of a child that hangs is not read again before that child has ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

from kmodd.dataclass import dataclass
from kmodd.host import child_reader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

LIMIT = 0.5
"""Seconds for which the event loop waits for the devices of one request."""

HUNG_AFTER = 0.1
"""Seconds without an answer after which another child continues with the next device."""

MAX_HUNG = 16
"""Children that may hang at a time; while there are so many, no other is started."""


@dataclass(slots=True, eq=False)
class _Child:
    """A child that reads the files in order and writes a line `FREE NUMBER` for each; FREE is 1 if it is not set."""

    pid: int
    pipe: int
    """At its end the child has ended too."""
    first: int
    """Number of its first device."""
    answered: int = 0
    """Devices that it has read."""
    text: bytes = b""

    def fileno(self) -> int:
        """Return the descriptor of the pipe."""
        return self.pipe

    def read(self) -> list[tuple[int, bool]] | None:
        """Return (number, is not set) of each device read since the last call; None once the child has ended."""
        data = os.read(self.pipe, 4096)
        if not data:
            os.close(self.pipe)
            return None
        *lines, self.text = (self.text + data).split(b"\n")
        self.answered += len(lines)
        return [(self.first + int(line[2:]), line.startswith(b"1")) for line in lines]


class DriverOverrides:
    """Reads `driver_override` of devices, and remembers those that hang."""

    def __init__(self, root: str) -> None:
        """`root`: prefix of /sys."""
        self._root = root
        self._hung: dict[str, _Child] = {}
        """Children that hang, by devpath."""
        self.waited = 0.0
        """Seconds spent reading so far."""

    def of(self, devpaths: Iterable[str]) -> set[str]:
        """Return the devices whose `driver_override` is set, or cannot be read now as a probe holds the lock."""
        self._forget_ended()
        paths = [path for path in devpaths if os.path.exists(self._file(path))]
        begun = time.monotonic()
        free = self._read([path for path in paths if path not in self._hung])
        self.waited += time.monotonic() - begun
        return set(paths) - free

    def _file(self, devpath: str) -> str:
        return f"{self._root}/sys{devpath}/driver_override"

    def _forget_ended(self) -> None:
        for device, child in list(self._hung.items()):
            while select.select([child], [], [], 0)[0]:
                if child.read() is None:
                    del self._hung[device]
                    break

    def _read(self, paths: list[str]) -> set[str]:
        """Return the devices whose `driver_override` is not set, as far as known after LIMIT."""
        answers: dict[int, bool] = {}
        children, reached = self._start(paths, 0), 0
        deadline = time.monotonic() + LIMIT
        while children and len(answers) < len(paths) and (left := deadline - time.monotonic()) > 0:
            ready = select.select(children, [], [], min(left, HUNG_AFTER))[0]
            if not ready:  # a later answer of the child that hangs is still used, up to the deadline
                reached += 1
                children += self._start(paths, reached)
            for child in ready:
                if (found := child.read()) is None:
                    children.remove(child)
                else:
                    answers.update(found)
                    reached = max(reached, child.first + child.answered)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
            at = child.first + child.answered
            if at < len(paths) and paths[at] not in self._hung:
                self._hung[paths[at]] = child
            else:
                os.close(child.pipe)
        return {paths[number] for number, is_free in answers.items() if is_free}

    def _start(self, paths: list[str], first: int) -> list[_Child]:
        """Start a child that reads the devices from number `first` on; return [] if none is left or it fails."""
        if first >= len(paths) or len(self._hung) >= MAX_HUNG:
            return []

        def read(pipe: int) -> None:
            for number, path in enumerate(paths[first:]):
                os.write(pipe, b"%d %d\n" % (_is_free(self._file(path)), number))

        child = child_reader.start(read)
        return [_Child(*child, first)] if child else []


def _is_free(path: str) -> bool:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read().strip() in (b"", b"(null)")
    return False
