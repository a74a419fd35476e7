"""How long a load may take before its lane goes on without it: `overdue` tells which have taken too long, and why.

Nothing is killed. Two things keep a load from coming back: the module's init, or, once the module is live, work that
some driver has the kernel do on the side (kernel/async.c): each load waits for that at its end, whosever it is.
"""

from __future__ import annotations

import contextlib

from kmodd.daemon.in_flight import Flights, Work
from kmodd.dataclass import dataclass
from kmodd.kernel.proc_modules import Loaded
from kmodd.loader.kernel_stack import StackQuestion
from kmodd.planning.outcome import Outcome
from kmodd.planning.plan import Insmod

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

ANSWER_LIMIT = 3.0
"""Seconds in which we want to hear where the kernel hangs; the record does not wait longer."""

BEHIND_A_STALL = 1.0
"""Seconds that a load gets whose module is live, where another is known to wait for work on the side."""

_ASYNC = "it is live, but the kernel waits for work that some driver does on the side, as does every load after it"


@dataclass(frozen=True, slots=True)
class Overdue:
    """One load that its job waits for no longer."""

    work: Work
    outcome: Outcome
    """What the job goes on with."""
    told: Outcome | None = None
    """A record beside that outcome's own."""


def overdue(
    flights: Flights, loaded: Callable[[], Loaded], limit: float, ask: Callable[[int], StackQuestion | None], now: float
) -> list[Overdue]:
    """The loads that have just become so.

    `loaded`: looks at what the kernel has. `limit`: seconds; `ask` opens a question for the stack of a process.
    """
    given_up = [work for work in flights.works.values() if work.hangs]
    late = [work for work in flights.busy() if (now - work.since) > (min(BEHIND_A_STALL, limit) if given_up else limit)]
    if not late:
        return []
    state = loaded()
    first = next((work.module for work in given_up if _is_live(work, state)), "")
    found = []
    for work in late:
        live = _is_live(work, state)
        if live and first:
            found.append(_stall(work, f"{_ASYNC}: {first} was the first", now))
        elif (now - work.since) > limit and _asked(work, ask, now):
            found.append(_stall(work, _ASYNC, now) if live else _hang(work, now))
            first = first or (work.module if live else "")
    return found


def next_look(flights: Flights, limit: float, now: float) -> float | None:
    """When (time.monotonic) `overdue` is worth calling; None: nothing is in flight."""
    if any(work.hangs for work in flights.works.values()) and flights.busy():
        return now + BEHIND_A_STALL
    waits = (max(0.0, work.since + limit - now, (work.answer_by or 0.0) - now) for work in flights.busy())
    return min((now + wait + 0.01 for wait in waits), default=None)


def heard_stack(work: Work) -> None:
    """The kernel's answer may be there: where it is whole, the question is over."""
    if work.question is None:
        return
    answer = work.question.answer()
    if answer is not None:
        work.stack, work.answer_by = answer, 0.0
        drop_question(work)


def drop_question(work: Work) -> None:
    """Ask no longer."""
    if work.question is not None:
        with contextlib.suppress(OSError):
            work.question.close()
        work.question = None


def _asked(work: Work, ask: Callable[[int], StackQuestion | None], now: float) -> bool:
    """The kernel was asked where it hangs, and has answered or will not."""
    if work.answer_by is None:
        work.question = ask(work.lane.pid) if work.lane.pid else None
        work.answer_by = now + ANSWER_LIMIT if work.question else 0.0
    if now < work.answer_by:
        return False
    drop_question(work)
    return True


def _is_live(work: Work, loaded: Loaded) -> bool:
    return isinstance(work.step, Insmod) and loaded.state(work.module) == "live"


def _usec(work: Work, now: float) -> int:
    return int((now - work.since) * 1e6)


def _hang(work: Work, now: float) -> Overdue:
    evidence = (("KMODD_STACK", "\n".join(work.stack)),) if work.stack else ()
    where = f", in {work.stack[0].split()[-1]}" if work.stack else ""
    outcome = Outcome(
        work.job.plan.request, work.module, "stuck", work.step.because, _path(work),
        duration_usec=_usec(work, now), detail=f"it is left alone{where}; the others go on", evidence=evidence,
    )  # fmt: skip
    return Overdue(work, outcome)


def _stall(work: Work, why: str, now: float) -> Overdue:
    evidence = (("KMODD_STACK", "\n".join(work.stack)),) if work.stack else ()
    request, usec = work.job.plan.request, _usec(work, now)
    because, path = work.step.because, _path(work)
    told = Outcome(request, work.module, "stuck", because, path, duration_usec=usec, detail=why, evidence=evidence)
    return Overdue(work, Outcome(request, work.module, "loaded", because, path, duration_usec=usec), told)


def _path(work: Work) -> str:
    return work.step.path if isinstance(work.step, Insmod) else ""
