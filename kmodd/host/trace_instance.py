"""An instance of tracefs with one event, read in binary form: a `TraceInstance`."""

from __future__ import annotations

import contextlib
import os
import sys

from kmodd.kernel.ftrace import parse_header_page

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

_READS: Final = 64
"""Pages read from one CPU at a time, so that a flood of events cannot occupy the daemon."""


class TraceInstance:
    """Opens or creates the instance, and removes it. Events that a killed process left unread are read."""

    def __init__(self, folder: str, event: str, kilobytes: int, *, clock: str = "boot", is_read: bool = True) -> None:
        """Start tracing `event`, `events/SYSTEM/NAME`. kilobytes: buffer of each CPU.

        clock: of the events (Documentation/trace/ftrace.rst). is_read: False if `pages` is not called.
        Raises OSError if tracefs or the event is missing or not permitted, ParseError if its format is unknown.
        """
        self._folder = folder
        self._pipes: list[int] = []
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        self.is_new = False
        """Whether it was not recording before."""
        try:
            self.layout = parse_header_page(self._read("events/header_page"), sys.byteorder)
            self.format = self._read(f"{event}/format")
            self.is_new = any(self._read(name).strip() != "1" for name in (f"{event}/enable", "tracing_on"))
            if f"[{clock}]" not in self._read("trace_clock"):  # writing it empties the buffer
                self._write("trace_clock", clock)
                self.is_new = True
            for cpu in sorted(os.listdir(f"{folder}/per_cpu")) if is_read else ():
                path = f"{folder}/per_cpu/{cpu}/trace_pipe_raw"
                self._pipes.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            for name, value in (("buffer_size_kb", str(kilobytes)), (f"{event}/enable", "1"), ("tracing_on", "1")):
                self._write(name, value)
        except BaseException:
            self.close()
            raise

    def pages(self) -> Iterator[bytes | None]:
        """Yield the pages with events since the last call; None if some cannot be read."""
        for pipe in self._pipes:
            for _ in range(_READS):
                try:
                    data = os.read(pipe, self.layout.size)
                except BlockingIOError:
                    break
                except OSError:
                    yield None
                    break
                if not data:
                    break  # there is an event that its writer has not completed yet
                yield data

    def close(self) -> None:
        """Stop tracing and remove the instance, which the kernel keeps while another process reads it."""
        while self._pipes:
            os.close(self._pipes.pop())
        with contextlib.suppress(OSError):
            os.rmdir(self._folder)

    def _read(self, name: str) -> str:
        with open(f"{self._folder}/{name}", encoding="ascii", errors="replace") as file:
            return file.read()

    def _write(self, name: str, value: str) -> None:
        fd = os.open(f"{self._folder}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode("ascii"))
        finally:
            os.close(fd)
