"""Match the kernel's helpers to the traced requests that started them.

The kernel traces a request (`module_request`, with thread and name) and starts a helper, which only knows the name. A
request is *open* until its helper connects. With two open requests for one name, the requester of a helper is unknown,
unless the requesters differ only in PID and comm. An unknown requester is reported as unknown, never guessed.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass, field, replace
from kmodd.kernel.ftrace import ModuleRequested
from kmodd.kernel.requester import Requester

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

LATEST_NS: Final = 60_000_000_000
"""Nanoseconds after which a request without a helper is dropped. A helper takes milliseconds to connect, longer while a
disk hangs."""
PROMPT_NS: Final = 500_000_000
"""Nanoseconds after the trace begins for which helpers may belong to earlier requests. Longer than helpers of a busy
machine take (30 ms); short, because requesters are unknown meanwhile."""
MAX_REQUESTS: Final = 1024
"""Maximum number of open requests. The kernel runs at most 50 helpers at a time (kernel/module/kmod.c)."""
MAX_CANDIDATES: Final = 16
"""Maximum number of different requesters that policy judges for one request."""


@dataclass(slots=True)
class _OpenByName:
    """The open requests for one name, oldest first."""

    requests: list[tuple[ModuleRequested, Requester | None]] = field(default_factory=list)
    unknown: int = 0
    """Number of helpers with an unknown requester: as many of `requests` are complete, but not known which."""

    def close_one(self) -> None:
        """Count a helper whose requester is unknown."""
        self.unknown += 1
        self.settle()

    def settle(self) -> None:
        """Drop all requests if each has had a helper; new requests are unambiguous."""
        if self.unknown >= len(self.requests):
            self.requests.clear()
            self.unknown = 0


class OpenRequests:
    """The traced requests whose helpers have not connected yet.

    Every event is added in the order of time, and `match` is called once for each helper. Times are nanoseconds of the
    trace clock.
    """

    def __init__(self) -> None:
        self._names: dict[str, _OpenByName] = {}
        self._count = 0
        self._blind_until_ns = 0
        self.was_ambiguous = False
        """The last `match` found no requester because several had asked for the name."""
        self.candidates: tuple[Requester, ...] = ()
        """Those of whom one is the requester then; empty: none is known, one of them is not, or they are too many."""

    def __len__(self) -> int:
        return self._count

    def add(self, event: ModuleRequested, who: Requester | None, now_ns: int) -> None:
        """Add a request. who: its requester, None if it could not be determined."""
        if self._count >= MAX_REQUESTS:
            self._names.clear()
            self._count = 0
            self.lost(now_ns)
        self._names.setdefault(event.name, _OpenByName()).requests.append((event, who))
        self._count += 1

    def lost(self, when_ns: int) -> None:
        """Note that events up to `when_ns` were lost: until LATEST_NS later, any helper may belong to one of them."""
        self._blind_until_ns = max(self._blind_until_ns, when_ns + LATEST_NS)

    def began(self, when_ns: int) -> None:
        """Note that the trace has no events before `when_ns`: until PROMPT_NS later, any helper may belong to one."""
        self._blind_until_ns = max(self._blind_until_ns, when_ns + PROMPT_NS)

    def match(self, name: str, now_ns: int) -> Requester | None:
        """Close the request of the helper for `name` that connects now, and return its requester; None: unknown.

        If several requesters differ only in PID and comm, the result is the oldest.
        """
        self._drop_old(now_ns)
        self.was_ambiguous, self.candidates = False, ()
        open_requests = self._names.get(name)
        if open_requests is None:
            return None
        who = _common_requester(open_requests) if now_ns >= self._blind_until_ns else None
        before = len(open_requests.requests)
        if who is None:
            self.was_ambiguous = before > 1
            if self.was_ambiguous and now_ns >= self._blind_until_ns:
                self.candidates = _candidates(open_requests)
            open_requests.close_one()
        else:
            del open_requests.requests[0]
        self._count -= before - len(open_requests.requests)
        if not open_requests.requests:
            del self._names[name]
        return who

    def _drop_old(self, now_ns: int) -> None:
        """Drop requests older than LATEST_NS, whose helpers were killed or never started."""
        for name, each in list(self._names.items()):
            before = len(each.requests)
            each.requests = [entry for entry in each.requests if entry[0].timestamp_ns + LATEST_NS > now_ns]
            each.settle()
            self._count -= before - len(each.requests)
            if not each.requests:
                del self._names[name]


def _common_requester(open_requests: _OpenByName) -> Requester | None:
    """Return the oldest requester if all differ only in PID and comm, else None.

    The thread of request_module_nowait() may be gone, so its requester is unknown too.
    """
    if open_requests.unknown or not all(event.wait for event, _ in open_requests.requests):
        return None
    oldest, *others = (who for _, who in open_requests.requests)
    return oldest if all(_comparable(who) == _comparable(oldest) for who in others) else None


def _candidates(open_requests: _OpenByName) -> tuple[Requester, ...]:
    """Return one requester for each that differs in more than PID and comm; empty: one is unknown, or too many."""
    found: dict[Requester, Requester] = {}
    for event, who in open_requests.requests:
        if who is None or not event.wait:
            return ()
        found.setdefault(replace(who, pid=0, comm=""), who)
    return tuple(found.values()) if len(found) <= MAX_CANDIDATES else ()


def _comparable(who: Requester | None) -> Requester | None:
    """Return the requester without PID and comm."""
    return who and replace(who, pid=0, comm="")
