"""How long a load may take before its lane goes on without it: `overdue` tells which have taken too long, and why.

Nothing is killed. Two things keep a load from coming back: the module's init, or, once the module is live, work that
some driver has the kernel do on the side (kernel/async.c): each load waits for that at its end, whosever it is.
"""

from __future__ import annotations

import contextlib

from kmodd.daemon.in_flight import Batch, InFlight
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

    batch: Batch
    outcome: Outcome
    """What the job goes on with."""
    told: Outcome | None = None
    """A record beside that outcome's own."""


def overdue(
    in_flight: InFlight,
    loaded: Callable[[], Loaded],
    limit: float,
    ask: Callable[[int], StackQuestion | None],
    now: float,
) -> list[Overdue]:
    """The loads that have just become so.

    `loaded`: looks at what the kernel has. `limit`: seconds; `ask` opens a question for the stack of a process.
    """
    given_up = [batch for batch in in_flight.batches.values() if batch.hangs]
    late = [
        batch for batch in in_flight.busy() if (now - batch.since) > (min(BEHIND_A_STALL, limit) if given_up else limit)
    ]
    if not late:
        return []
    state = loaded()
    first = next((batch.module for batch in given_up if _is_live(batch, state)), "")
    found = []
    for batch in late:
        live = _is_live(batch, state)
        if live and first:
            found.append(_stall(batch, f"{_ASYNC}: {first} was the first", now))
        elif (now - batch.since) > limit and _asked(batch, ask, now):
            found.append(_stall(batch, _ASYNC, now) if live else _hang(batch, now))
            first = first or (batch.module if live else "")
    return found


def next_look(in_flight: InFlight, limit: float, now: float) -> float | None:
    """When (time.monotonic) `overdue` is worth calling; None: nothing is in flight."""
    if any(batch.hangs for batch in in_flight.batches.values()) and in_flight.busy():
        return now + BEHIND_A_STALL
    waits = (max(0.0, batch.since + limit - now, (batch.answer_by or 0.0) - now) for batch in in_flight.busy())
    return min((now + wait + 0.01 for wait in waits), default=None)


def heard_stack(batch: Batch) -> None:
    """The kernel's answer may be there: where it is whole, the question is over."""
    if batch.question is None:
        return
    answer = batch.question.answer()
    if answer is not None:
        batch.stack, batch.answer_by = answer, 0.0
        drop_question(batch)


def drop_question(batch: Batch) -> None:
    """Ask no longer."""
    if batch.question is not None:
        with contextlib.suppress(OSError):
            batch.question.close()
        batch.question = None


def _asked(batch: Batch, ask: Callable[[int], StackQuestion | None], now: float) -> bool:
    """The kernel was asked where it hangs, and has answered or will not."""
    if batch.answer_by is None:
        batch.question = ask(batch.lane.pid) if batch.lane.pid else None
        batch.answer_by = now + ANSWER_LIMIT if batch.question else 0.0
    if now < batch.answer_by:
        return False
    drop_question(batch)
    return True


def _is_live(batch: Batch, loaded: Loaded) -> bool:
    return isinstance(batch.step, Insmod) and loaded.state(batch.module) == "live"


def _usec(batch: Batch, now: float) -> int:
    return int((now - batch.since) * 1e6)


def _hang(batch: Batch, now: float) -> Overdue:
    evidence = (("KMODD_STACK", "\n".join(batch.stack)),) if batch.stack else ()
    where = f", in {batch.stack[0].split()[-1]}" if batch.stack else ""
    outcome = Outcome(
        batch.job.plan.request, batch.module, "stuck", batch.step.because, _path(batch),
        duration_usec=_usec(batch, now), detail=f"it is left alone{where}; the others go on", evidence=evidence,
    )  # fmt: skip
    return Overdue(batch, outcome)


def _stall(batch: Batch, why: str, now: float) -> Overdue:
    evidence = (("KMODD_STACK", "\n".join(batch.stack)),) if batch.stack else ()
    request, usec = batch.job.plan.request, _usec(batch, now)
    because, path = batch.step.because, _path(batch)
    told = Outcome(request, batch.module, "stuck", because, path, duration_usec=usec, detail=why, evidence=evidence)
    return Overdue(batch, Outcome(request, batch.module, "loaded", because, path, duration_usec=usec), told)


def _path(batch: Batch) -> str:
    return batch.step.path if isinstance(batch.step, Insmod) else ""
