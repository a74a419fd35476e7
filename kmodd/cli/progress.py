"""Progress bar on standard error, if that is a terminal."""

from __future__ import annotations

import os
import sys
import time

from kmodd.cli.streams import draw

DELAY = 0.3
"""Seconds before the bar is drawn, so that short runs show none."""
INTERVAL = 0.05
"""Seconds between updates."""
_WIDTH = 40


class Bar:
    """The bar of one run; a context manager that erases the bar at its end."""

    def __init__(self, name: str) -> None:
        """Prepare a bar labelled `name`; nothing is drawn yet."""
        self._name = name
        self._is_shown = sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
        self._has_colour = not os.environ.get("NO_COLOR")
        self._next = time.monotonic() + DELAY
        self._is_drawn = False

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_drawn:
            draw("\r\x1b[K")

    def show(self, done: int, of: int) -> None:
        """Draw that `done` items out of `of` are done, at most once per interval."""
        if not self._is_shown or (now := time.monotonic()) < self._next:
            return
        self._next = now + INTERVAL
        full = _WIDTH * done // of
        bar = "#" * full
        if self._has_colour:
            bar = f"\x1b[32m{bar}\x1b[0m"
        draw(f"\r{self._name}: [{bar}{'.' * (_WIDTH - full)}] {done:,} of {of:,}")
        self._is_drawn = True
