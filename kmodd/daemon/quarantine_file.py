"""`Quarantine` below /run, where the next boot does not find it."""

from __future__ import annotations

import os

from kmodd.host.regular_files import read_regular
from kmodd.state import quarantine
from kmodd.state.quarantine import Quarantine
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

STANDING = "/run/kmodd/standing"


class QuarantineFile:
    """Reads it once, writes it whenever it changed."""

    def __init__(self, path: str = STANDING, root: str = "", warn: Callable[[str], None] = lambda _: None) -> None:
        """`root`: of the machine whose devices are there or not. `warn`: takes `problem` at each failure to write."""
        self._path = path
        self._root = root
        self._warn = warn
        self.problem = ""
        """Why the file is out of date; empty: it is not."""
        self._written = ""
        self._age = -1
        """Of what was written, or need not be."""

    def read(self) -> Quarantine:
        """What an earlier daemon of this boot left; nothing where there is none, or where it makes no sense.

        A device that has gone since then is forgotten: the next one at its place is new.
        """
        try:
            text = decode(read_regular(self._path))
            found = quarantine.of_text(text)
        except (OSError, ValueError):
            return Quarantine()
        self._written = text
        for device in {device for devices in found.removed.values() for device in devices}:
            if not os.path.exists(f"{self._root}/sys{device}"):
                found.leave(device)
        return found

    def write(self, now: Quarantine) -> None:
        """Replace the file if anything changed. Where it cannot be written (a full /run), the next call tries again."""
        if now.age == self._age:
            return  # as mostly, and asked in each round of the loop
        text = now.to_text() if now.crashed or now.removed or self._written else ""
        if text == self._written:
            self._age = now.age
            return
        try:
            with open(f"{self._path}.new", "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(text)
            os.rename(f"{self._path}.new", self._path)
        except OSError as error:
            lost = "the next daemon does not know which modules have crashed or were removed"
            self.problem = f"Failed to write {self._path}: {error.strerror}; {lost}"
            self._warn(self.problem)
            return
        self._written, self._age, self.problem = text, now.age, ""
