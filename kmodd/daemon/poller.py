"""Whom the loop hears: some always, lanes and callers while they are there, the kernel with pauses. `Poller`."""

from __future__ import annotations

import selectors

from kmodd.host.kmsg_reader import KernelMessages
from kmodd.host.netlink import KernelEvents
from kmodd.host.varlink_server import Connection
from kmodd.loader.kernel_stack import StackQuestion
from kmodd.loader.pool import Loader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Protocol

    class _Source(Protocol):
        def fileno(self) -> int: ...


PAUSE = 0.05
"""Seconds for which what the kernel says is left to gather: a module says much in a moment, and to wake up for each
word costs more than to hear it.
"""


class Poller:
    """One selector. A change costs a system call, so only differences from the last call are passed to it."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._pauses: dict[KernelEvents | KernelMessages, float] = {}
        self._polled: set[KernelEvents | KernelMessages] = set()
        self._sources: object = None

    def add(self, source: _Source) -> None:
        """Listen to it from now on."""
        for key in list(self._selector.get_map().values()):
            if key.data.fileno() < 0:  # closed since the last `wait`; the new source may have its number
                self._selector.unregister(key.fileobj)
        self._selector.register(source, selectors.EVENT_READ, source)

    def pause(self, source: KernelEvents | KernelMessages, now: float) -> None:
        """Leave it alone for a while. `now`: time.monotonic."""
        self._pauses[source] = now + PAUSE

    def is_paused(self, source: KernelEvents) -> bool:
        """Return whether it is not polled now, although it may have something to read."""
        return source in self._pauses

    def resume(self, source: KernelEvents) -> None:
        """Listen to it again."""
        self._pauses.pop(source, None)

    def wait(
        self,
        kernel: Iterable[KernelEvents | KernelMessages],
        loaders: tuple[Loader | StackQuestion, ...],
        callers: Iterable[Connection],
        now: float,
        timeout: float,
    ) -> list[tuple[Any, bool]]:
        """Wait at most `timeout` seconds. The answer: who speaks, or can be written to (True).

        `kernel`: its events and log. `loaders`, `callers`: who there is now.
        """
        for source in kernel:
            self._poll(source, now)
        self._watch(loaders, callers)
        timeout = min((timeout, *(until - now for until in self._pauses.values())))
        found = self._selector.select(max(0.0, timeout))
        return [(key.data, bool(mask & selectors.EVENT_WRITE)) for key, mask in found]

    def _poll(self, source: KernelEvents | KernelMessages, now: float) -> None:
        pauses = self._pauses.get(source, 0.0) > now
        if not pauses:
            self._pauses.pop(source, None)
        if pauses == (source in self._polled):
            if pauses:
                self._selector.unregister(source)
                self._polled.discard(source)
            else:
                self._selector.register(source, selectors.EVENT_READ, source)
                self._polled.add(source)

    def _watch(self, loaders: tuple[Loader | StackQuestion, ...], callers: Iterable[Connection]) -> None:
        masks = tuple((caller, _mask(caller)) for caller in callers)
        if (loaders, masks) == self._sources:
            return
        self._sources = loaders, masks
        wanted: dict[Loader | StackQuestion | Connection, int] = dict.fromkeys(loaders, selectors.EVENT_READ)
        wanted.update(masks)
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, Loader | StackQuestion | Connection):
                mask = wanted.pop(key.data, 0)
                if not mask:
                    self._selector.unregister(key.fileobj)
                elif mask != key.events:
                    self._selector.modify(key.fileobj, mask, key.data)
        for new, mask in wanted.items():
            if mask:
                self._selector.register(new, mask, new)

    def close(self) -> None:
        """Listen no more."""
        self._selector.close()


def _mask(caller: Connection) -> int:
    reading = 0 if caller.ended else selectors.EVENT_READ
    return reading | (selectors.EVENT_WRITE if caller.unsent else 0)
