"""A bar on a terminal that shows how far a long run has come; nothing at all where standard error is no terminal."""

from __future__ import annotations

import os
import sys
import time

_PATIENCE = 0.3
"""Seconds that a run may take without being shown."""
_PAUSE = 0.05
_WIDTH = 40


class Bar:
    """The bar of one run; a context that leaves no trace on the screen."""

    def __init__(self, name: str) -> None:
        """Nothing is drawn yet."""
        self._name = name
        self._is_seen = sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
        self._has_colour = not os.environ.get("NO_COLOR")
        self._next = time.monotonic() + _PATIENCE
        self._is_drawn = False

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_drawn:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def show(self, done: int, of: int) -> None:
        """So many of so many are done."""
        if not self._is_seen or (now := time.monotonic()) < self._next:
            return
        self._next = now + _PAUSE
        full = _WIDTH * done // of
        bar = "#" * full
        if self._has_colour:
            bar = f"\x1b[32m{bar}\x1b[0m"
        sys.stderr.write(f"\r{self._name}: [{bar}{'.' * (_WIDTH - full)}] {done:,} of {of:,}")
        sys.stderr.flush()
        self._is_drawn = True
