"""What the kernel says of a module while it takes it in, out of /dev/kmsg: which symbol, which version, which key."""

from __future__ import annotations

import os

KMSG = "/dev/kmsg"
_RECORD = 8192
"""Bytes of the longest record (kernel/printk, CONSOLE_EXT_LOG_MAX)."""
_MOST = 8
"""Lines that are given at most."""


class KernelLog:
    """Reads what is logged from now on. Where the log cannot be read, it has nothing to say."""

    def __init__(self, path: str = KMSG) -> None:
        """Open it at its end."""
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._fd, 0, os.SEEK_END)
        except OSError:
            self._fd = -1

    def about(self, module: str) -> list[str]:
        """The lines since the start that are about `module`; closes the log."""
        if self._fd < 0:
            return []
        lines: list[str] = []
        # `NAME: …` is most of it; `Loading of unsigned module is rejected` names nobody (kernel/module/*.c)
        starts = (f"{module}: ", "Loading of ", f"Module {module} ")
        try:
            while len(lines) < _MOST and (record := os.read(self._fd, _RECORD)):
                # `6,1234,5678,-;TEXT`, then fields, each on a line with a blank before it (Documentation/ABI/dev-kmsg)
                text = record.partition(b";")[2].partition(b"\n")[0].decode("utf-8", "replace")
                if text.startswith(starts):
                    lines.append(text)
        except OSError:
            pass  # EAGAIN: there is no more. EPIPE: it was overwritten before we read it.
        finally:
            os.close(self._fd)
            self._fd = -1
        return lines
