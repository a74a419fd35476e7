"""Stand-ins for a real kernel and journal. The VM tests prove the same with the real ones."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field

from kmodd.planning.record import Record


class Oops(BaseException):
    """The process that is in the kernel dies at once, without an answer."""


@dataclass
class FakeKernel:
    """Takes modules in by the name of their file; refuses with the errno that a test asked for."""

    refuse: dict[str, int] = field(default_factory=dict)
    oops: set[str] = field(default_factory=set)
    """Files whose init takes the caller along."""
    calls: list[tuple[str, str, int]] = field(default_factory=list)

    def finit_module(self, fd: int, options: str, flags: int) -> None:
        name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
        self.calls.append((name, options, flags))
        self._answer(name)

    def init_module(self, image: bytes, options: str) -> None:
        self.calls.append((image.decode("latin-1"), options, -1))

    def delete_module(self, name: str, flags: int) -> None:
        self.calls.append((name, "", flags))
        self._answer(name)

    def _answer(self, name: str) -> None:
        if name in self.oops:
            raise Oops
        if code := self.refuse.get(name):
            raise OSError(code, errno.errorcode[code])


@dataclass
class ListJournal:
    """Keeps the records."""

    records: list[Record] = field(default_factory=list)
    lost: int = 0

    def write(self, record: Record) -> None:
        self.records.append(record)

    def flush(self) -> float | None:
        return None

    def close(self) -> None:
        pass
