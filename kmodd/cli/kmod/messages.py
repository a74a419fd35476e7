"""Output of the drop-in tools: kmod's log levels, to standard error or syslog."""

from __future__ import annotations

import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kmodd.planning.reply import Reply

CRIT, ERR, WARNING, NOTICE, INFO, DEBUG = 2, 3, 4, 5, 6, 7
_WORDS = {CRIT: "FATAL", ERR: "ERROR", WARNING: "WARNING", NOTICE: "NOTICE", INFO: "INFO", DEBUG: "DEBUG"}

VERSION = "kmod version 34.2"
FEATURES = "+ZSTD +XZ +ZLIB +OPENSSL"
"""kmodd supports ZLIB; Debian builds kmod without it."""


def own_reasons(reply: Reply) -> list[str]:
    """Return the reason for an errno that kmod's messages do not explain, EFBIG of unpacking; else an empty list."""
    is_own = reply.errno == errno.EFBIG and reply.stage == "file"
    return [f"kmodd says: {reply.detail}"] if is_own else []


class Stop(Exception):
    """Request to end the program with `status`, as after a FATAL message."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Messages:
    """Buffered standard output, and messages filtered by level."""

    def __init__(self, program: str, verbose: int = WARNING) -> None:
        self._program = program
        self._lines: list[str] = []
        self._is_terminal: bool | None = None
        self.verbose = verbose
        """Highest level that is printed."""
        self.syslog = False

    def show(self, line: str) -> None:
        """Print a line to standard output; only a terminal is line-buffered, as with stdio(3)."""
        self._lines.append(line + "\n")
        if self._is_terminal is None:
            self._is_terminal = sys.stdout.isatty()
        if self._is_terminal:
            self.flush()

    def log(self, level: int, text: str) -> None:
        """Print a message if its level is enabled. Raises Stop after a FATAL one (kmod log_printf)."""
        if level > self.verbose:
            return
        if self.syslog:
            import syslog

            syslog.openlog(self._program, syslog.LOG_CONS, syslog.LOG_DAEMON)
            syslog.syslog(level, f"{_WORDS[level]}: {text}")
        else:
            self.say(f"{self._program}: {_WORDS[level]}: {text}")
        if level <= CRIT:
            raise Stop(1)

    def say(self, line: str) -> None:
        """Print a line to standard error, regardless of the level."""
        sys.stderr.buffer.write(os.fsencode(line + "\n"))
        sys.stderr.flush()

    def flush(self) -> None:
        """Write the buffered lines."""
        sys.stdout.buffer.write(os.fsencode("".join(self._lines)))
        sys.stdout.flush()
        self._lines.clear()
