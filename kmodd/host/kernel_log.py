"""What the kernel says of a module while it takes it in, out of /dev/kmsg: which symbol, which version, which key."""

from __future__ import annotations

import contextlib
import os

KMSG = "/dev/kmsg"
_RECORD = 8192
"""Bytes of the longest record (kernel/printk, CONSOLE_EXT_LOG_MAX)."""
_MOST = 8
"""Lines that are given at most."""


class KernelLog:
    """Reads what is logged from now on, in a `with` block. Where the log cannot be read, it has nothing to say."""

    def __init__(self, path: str = KMSG) -> None:
        """Open it at its end."""
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            self._fd = -1
            return
        with contextlib.suppress(OSError):
            os.lseek(self._fd, 0, os.SEEK_END)

    def __enter__(self) -> KernelLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def about(self, *modules: str) -> list[str]:
        """The lines that came since this was asked last and are about one of `modules`."""
        if self._fd < 0:
            return []
        lines: list[str] = []
        # `NAME: …` is most of it; `Loading of unsigned module is rejected` names nobody (kernel/module/*.c)
        starts = ("Loading of ", *(f"{module}: " for module in modules), *(f"Module {module} " for module in modules))
        try:
            while len(lines) < _MOST and (record := os.read(self._fd, _RECORD)):
                # `6,1234,5678,-;TEXT`, then fields, each on a line with a blank before it (Documentation/ABI/dev-kmsg)
                text = record.partition(b";")[2].partition(b"\n")[0].decode("utf-8", "replace")
                if text.startswith(starts):
                    lines.append(text)
        except OSError:
            pass  # EAGAIN: there is no more. EPIPE: it was overwritten before we read it.
        return lines
