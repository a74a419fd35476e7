"""What the tools that scripts know say and how: levels, wording of kmod's messages, standard error or syslog."""

from __future__ import annotations

import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kmodd.planning.reply import Reply

CRIT, ERR, WARNING, NOTICE, INFO, DEBUG = 2, 3, 4, 5, 6, 7
_WORDS = {CRIT: "FATAL", ERR: "ERROR", WARNING: "WARNING", NOTICE: "NOTICE", INFO: "INFO", DEBUG: "DEBUG"}

VERSION = "kmod version 30"
FEATURES = "+ZSTD +XZ +ZLIB +LIBCRYPTO -EXPERIMENTAL"
"""Debian 12 builds its kmod without ZLIB; kmodd has it."""


def own_reasons(reply: Reply) -> list[str]:
    """Return the line that explains a failed insertion whose errno kmod's words do not explain: EFBIG of unpacking."""
    is_own = reply.errno == errno.EFBIG and reply.stage == "file"
    return [f"kmodd says: {reply.detail}"] if is_own else []


class Stop(Exception):
    """Ends the program with a status, as a FATAL message does."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Messages:
    """Standard output, kept until the end or until `flush`, and messages by level."""

    def __init__(self, program: str, verbose: int = WARNING) -> None:
        self._program = program
        self._lines: list[str] = []
        self._is_terminal: bool | None = None
        self.verbose = verbose
        """The least important level that is heard."""
        self.syslog = False

    def show(self, line: str) -> None:
        """One line for standard output; a terminal gets it at once, as C's library does it."""
        self._lines.append(line + "\n")
        if self._is_terminal is None:
            self._is_terminal = sys.stdout.isatty()
        if self._is_terminal:
            self.flush()

    def log(self, level: int, text: str) -> None:
        """One message; a FATAL one that is heard ends the program (kmod log_printf)."""
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
        """One line for standard error, whatever the level."""
        sys.stderr.buffer.write(os.fsencode(line + "\n"))
        sys.stderr.flush()

    def flush(self) -> None:
        """Write what is kept."""
        sys.stdout.buffer.write(os.fsencode("".join(self._lines)))
        sys.stdout.flush()
        self._lines.clear()
