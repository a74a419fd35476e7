"""Standard streams that every program can use, also if the caller closed them or they cannot be written.

The kernel starts programs with descriptors 0 to 2 closed, init systems do so with some. Python then has no sys.stdout,
and the next file that is opened becomes descriptor 1. A full disk makes each write to a redirected stream fail.
"""

from __future__ import annotations

import errno
import io
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

    from _typeshed import ReadableBuffer

_LEVELS = {"FATAL": 2, "ERROR": 3, "WARNING": 4, "NOTICE": 5, "INFO": 6, "DEBUG": 7}
"""First word of a message → syslog level."""
_ERR = 3
_CONTROL = bytes([*range(9), *range(11, 32), 127])
"""Control characters other than tab and line end."""
_C1 = b"\xc2"
"""First byte of the others, in UTF-8."""


def _escaped(data: bytes) -> bytes:
    """Return data for a terminal: control characters are escaped as in C, but for the colours of cli/terminal.py."""
    if _C1 not in data and len(data.translate(None, _CONTROL)) == len(data):
        return data
    import re  # needed only here

    pattern = rb"(\x1b\[0(?:;1)?(?:;3[1-3])?m)|[\0-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]"
    return re.sub(pattern, lambda found: found[1] or b"\\x%02x" % found[0][-1], data)


class _Stream(io.RawIOBase):
    """A descriptor to write to; an error of write(2) is kept, not raised."""

    def __init__(self, fd: int, *, is_closed: bool) -> None:
        self._fd = fd
        self._is_terminal = not is_closed and os.isatty(fd)
        self.is_closed = is_closed
        """The caller closed it."""
        self.lost = 0
        """errno of the first write that failed; 0: none."""

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        """Write the data, waiting for the reader of a descriptor that does not block; drop it after an error.

        On a terminal, control characters are escaped as in C: a device, file or user has written them.
        """
        size = memoryview(data).nbytes
        return self.draw(_escaped(bytes(data)), size) if self._is_terminal else self._write(data)

    def draw(self, data: bytes, size: int = 0) -> int:
        """Write the data as it is, all of it, and return `size`."""
        while data and not self.lost:
            data = data[self._write(data) :]
        return size

    def _write(self, data: ReadableBuffer) -> int:
        while True:
            try:
                return os.write(self._fd, data)
            except BlockingIOError:
                import select  # needed only here

                select.select([], [self._fd], [])
            except OSError as error:
                self.lost = self.lost or error.errno or errno.EIO
                return memoryview(data).nbytes


class Output(_Stream):
    """Standard output. The loss of output is a failure of the program at its end."""

    def __init__(self, program: str, *, is_closed: bool) -> None:
        super().__init__(1, is_closed=is_closed)
        self.program = program
        self.is_needed = True
        """Whether the output is the work of the program, so that its loss is a failure even if the caller closed it."""

    def write(self, data: ReadableBuffer, /) -> int:
        """Write the data, or count it as lost if the caller closed the descriptor."""
        if not self.is_closed:
            return super().write(data)
        self.lost = errno.EBADF
        return memoryview(data).nbytes


class Messages(_Stream):
    """Standard error. If the caller closed it, lines go to syslog, as with kmod; their loss is no failure."""

    def __init__(self, program: str, *, is_closed: bool) -> None:
        super().__init__(2, is_closed=is_closed)
        self._program = program
        self._rest = b""

    def write(self, data: ReadableBuffer, /) -> int:
        """Write the data, or each complete line to syslog."""
        if not self.is_closed:
            return super().write(data)
        *lines, self._rest = (self._rest + bytes(data)).split(b"\n")
        for line in lines:
            self._to_syslog(line.decode("utf-8", "backslashreplace"))
        return memoryview(data).nbytes

    def _to_syslog(self, line: str) -> None:
        import syslog  # needed only here

        text = line.removeprefix(f"{self._program}: ").replace("\0", "\\0")
        if text:
            syslog.openlog(self._program.partition(" ")[0], syslog.LOG_CONS, syslog.LOG_DAEMON)
            syslog.syslog(_LEVELS.get(text.partition(":")[0], _ERR), text)


def open_streams(program: str) -> None:
    """Replace sys.stdout and sys.stderr, and open closed descriptors, so that no other file gets their numbers.

    program: its name at the beginning of its messages, such as `kmodd explain`.
    """
    closed = [fd for fd, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)) if stream is None or not _is_open(fd)]
    for fd in closed:
        _open_null(fd)
    sys.stdout = _text(Output(program, is_closed=1 in closed), sys.stdout, "surrogateescape")
    sys.stderr = _text(Messages(program, is_closed=2 in closed), sys.stderr, "backslashreplace", line_buffering=True)


def close_streams(status: int) -> int:
    """Write what is buffered, and return the exit status of the program.

    That is `status`, but 1 instead of 0 if output was lost, after a message; without a message if the reader has closed
    a pipe, as `| head` does.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    output = _output()
    if output is None or not output.lost or (output.is_closed and not output.is_needed):
        return status
    if output.lost != errno.EPIPE:
        print(
            f"{output.program}: Failed to write standard output: {os.strerror(output.lost)}",
            file=sys.stderr,
            flush=True,
        )
    return status or 1


def output_is_incidental() -> None:
    """Have the caller's closed standard output count as no failure, for a program that does more than print."""
    output = _output()
    if output is not None:
        output.is_needed = False


def draw(text: str) -> None:
    """Write a text with control characters of the program itself to standard error."""
    sys.stderr.flush()
    raw = getattr(getattr(sys.stderr, "buffer", None), "raw", None)
    if isinstance(raw, _Stream):
        raw.draw(text.encode())
    else:
        sys.stderr.write(text)
        sys.stderr.flush()


def log_stream() -> TextIO:
    """Return the stream for the log of a daemon: standard output, or standard error if the caller closed it."""
    output = _output()
    if output is None or not output.is_closed:
        return sys.stdout
    output.is_needed = False
    return sys.stderr


def output_is_lost() -> bool:
    """Return whether nothing more can be written to standard output, for programs that run until their input ends."""
    output = _output()
    return output is not None and bool(output.lost)


def _output() -> Output | None:
    """Return what `open_streams` opened, or None in a program that did not call it."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw if isinstance(raw, Output) else None


def _text(raw: _Stream, replaced: TextIO, errors: str, *, line_buffering: bool = False) -> io.TextIOWrapper:
    """Return a text stream like the one that it replaces, which may be None."""
    encoding = getattr(replaced, "encoding", None) or "utf-8"
    errors = getattr(replaced, "errors", None) or errors
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=line_buffering or raw.isatty())


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _open_null(fd: int) -> None:
    """Open /dev/null as `fd`, for child processes too. Standard input cannot be read from it: it was not empty."""
    try:
        null = os.open(os.devnull, os.O_WRONLY if fd == 0 else os.O_RDWR)
    except OSError:  # no /dev yet
        null = os.memfd_create("null")
    if null == fd:
        os.set_inheritable(fd, True)
    else:
        os.dup2(null, fd)
        os.close(null)
