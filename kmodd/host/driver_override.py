"""Devices whose `driver_override` somebody has set: `DriverOverrides`.

Reading that file takes the device's lock, for as long as a probe lasts, and cannot be killed: children read. One that
does not come back is remembered with its device, and until it has ended that device is not asked for again.
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
"""Seconds that the loop waits for the answers about the devices of one request."""

HUNG_AFTER = 0.1
"""Seconds without an answer after which another child goes on with the devices behind."""

MAX_HUNG = 16
"""Children that may hang at a time; beyond, nobody is asked."""


@dataclass(slots=True, eq=False)
class _Child:
    """Reads files in their order, and writes a line for each: its number, and 1 where nothing is set."""

    pid: int
    pipe: int
    """Its end is the child's end, however that comes."""
    first: int
    """Number of the device with which it began."""
    answered: int = 0
    text: bytes = b""

    def fileno(self) -> int:
        """For select."""
        return self.pipe

    def read(self) -> list[tuple[int, bool]] | None:
        """(number, nothing is set) of each device that it has come back from since this was asked; None: it ended."""
        data = os.read(self.pipe, 4096)
        if not data:
            os.close(self.pipe)
            return None
        *lines, self.text = (self.text + data).split(b"\n")
        self.answered += len(lines)
        return [(self.first + int(line[2:]), line.startswith(b"1")) for line in lines]


class DriverOverrides:
    """Asks, and remembers who did not answer."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._hung: dict[str, _Child] = {}
        """By device."""
        self.waited = 0.0
        """Seconds that asking has taken so far."""

    def of(self, devpaths: Iterable[str]) -> set[str]:
        """Those of some devices whose `driver_override` is set, or cannot be read now: a probe holds the device."""
        self._forget_ended()
        paths = [path for path in devpaths if os.path.exists(self._file(path))]
        begun = time.monotonic()
        free = self._ask([path for path in paths if path not in self._hung])
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

    def _ask(self, paths: list[str]) -> set[str]:
        """Those of some devices with nothing set."""
        answers: dict[int, bool] = {}
        children, reached = self._start(paths, 0), 0
        deadline = time.monotonic() + LIMIT
        while children and len(answers) < len(paths) and (left := deadline - time.monotonic()) > 0:
            ready = select.select(children, [], [], min(left, HUNG_AFTER))[0]
            if not ready:  # whoever comes back later still counts, up to the deadline
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
        """A child that asks for all from the device with this number on; none where none is left, or to be had."""
        if first >= len(paths) or len(self._hung) >= MAX_HUNG:
            return []

        def tell(pipe: int) -> None:
            for number, path in enumerate(paths[first:]):
                os.write(pipe, b"%d %d\n" % (_is_free(self._file(path)), number))

        child = child_reader.start(tell)
        return [_Child(*child, first)] if child else []


def _is_free(path: str) -> bool:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read().strip() in (b"", b"(null)")
    return False
