"""The connection that systemd has passed to this process (sd_listen_fds(3))."""

from __future__ import annotations

import os

_FIRST = 3
"""The first descriptor that systemd passes."""


def passed_connection() -> int | None:
    """Return the descriptor of the one connection that systemd has passed to this process, or None."""
    is_ours = os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1"
    return _FIRST if is_ours else None
