"""Which of the requests that the kernel announced is the one whose helper asks now.

The kernel announces a request (`module_request`, with the thread and the name) and starts a helper that knows the name
alone. A request is *open* until its helper has come. So of two open requests of one name nobody can say whose helper
this is, unless it makes no difference to what is told of the requester. The answer then is "unknown", never a guess.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass, field, replace
from kmodd.kernel.ftrace import ModuleRequested
from kmodd.kernel.requester import Requester

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

LATEST_NS: Final = 60_000_000_000
"""A helper that comes later than this after its event finds nobody. It takes milliseconds; a machine whose disk hangs
takes longer."""
MAX_REQUESTS: Final = 1024
"""Open requests that are kept. The kernel has 50 helpers at most at a time (kernel/module/kmod.c)."""


@dataclass(slots=True)
class _Name:
    """The open requests of one name, oldest first."""

    requests: list[tuple[ModuleRequested, Requester | None]] = field(default_factory=list)
    unknown: int = 0
    """How many helpers have come and were told "unknown": as many of `requests` are over, but not which."""

    def close_one(self) -> None:
        """A helper came and was told "unknown"."""
        self.unknown += 1
        self.settle()

    def settle(self) -> None:
        """All helpers have come: all is known again."""
        if self.unknown >= len(self.requests):
            self.requests.clear()
            self.unknown = 0


class OpenRequests:
    """Fed with every event in the order of time, and asked once for each helper. Times are those of the trace."""

    def __init__(self) -> None:
        self._names: dict[str, _Name] = {}
        self._count = 0
        self._blind_until_ns = 0

    def __len__(self) -> int:
        return self._count

    def add(self, event: ModuleRequested, who: Requester | None, now_ns: int) -> None:
        """A request was announced; `who` is None if that could not be told any more."""
        if self._count >= MAX_REQUESTS:
            self._names.clear()
            self._count = 0
            self.lost(now_ns)
        self._names.setdefault(event.name, _Name()).requests.append((event, who))
        self._count += 1

    def lost(self, when_ns: int) -> None:
        """Events until `when_ns` were not seen: as long as their helpers may come, any helper may be one of theirs."""
        self._blind_until_ns = max(self._blind_until_ns, when_ns + LATEST_NS)

    def match(self, name: str, now_ns: int) -> Requester | None:
        """Whose request a helper that asks for `name` now stands for; None: unknown. That request is over then.

        Of several that differ in nothing but their number and their comm, the oldest.
        """
        self._forget(now_ns)
        it = self._names.get(name)
        if it is None:
            return None
        who = _all_the_same(it) if now_ns >= self._blind_until_ns else None
        before = len(it.requests)
        if who is None:
            it.close_one()
        else:
            del it.requests[0]
        self._count -= before - len(it.requests)
        if not it.requests:
            del self._names[name]
        return who

    def _forget(self, now_ns: int) -> None:
        """Drop what is too old: its helper was killed, or never started."""
        for name, it in list(self._names.items()):
            before = len(it.requests)
            it.requests = [entry for entry in it.requests if entry[0].timestamp_ns + LATEST_NS > now_ns]
            it.settle()
            self._count -= before - len(it.requests)
            if not it.requests:
                del self._names[name]


def _all_the_same(it: _Name) -> Requester | None:
    """The oldest requester, if what is told of each is the same but for pid and comm."""
    if it.unknown or not all(event.wait for event, _ in it.requests):
        return None
    oldest, *others = (who for _, who in it.requests)
    return oldest if all(_told(who) == _told(oldest) for who in others) else None


def _told(who: Requester | None) -> Requester | None:
    """What has to be the same."""
    return who and replace(who, pid=0, comm="")
