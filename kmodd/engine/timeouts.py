"""Loads that take too long: which they are, and what their jobs go on with.

Nothing is killed. Two things keep a load from returning: the module's init, or, once the module is live, asynchronous
work of some driver (kernel/async.c): each load waits for all of that at its end.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass
from kmodd.engine.batch import Batch
from kmodd.engine.in_flight import InFlight
from kmodd.kernel.proc_modules import Loaded
from kmodd.planning.outcome import Outcome
from kmodd.planning.plan import Insmod, Install, RemoveCommand

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

BEHIND_A_STALL = 1.0
"""Seconds for a load whose module is live while another load is known to wait for asynchronous work."""

_ASYNC = "the module is live, but the kernel waits for asynchronous work of a driver, as does every later load"


@dataclass(frozen=True, slots=True)
class Overdue:
    """A load that its job does not wait for any longer."""

    batch: Batch
    outcome: Outcome
    """What the job goes on with."""
    is_live: bool = False
    """The module counts as loaded."""
    stall: Outcome | None = None
    """A record beside that of `outcome`."""


def overdue(
    in_flight: InFlight, loaded: Callable[[], Loaded], limit: float, now: float, ask: Callable[[Batch], None]
) -> list[Overdue]:
    """The loads that have become overdue, in the order they began.

    `loaded` reads what the kernel has. `limit` and `now` are seconds. `ask` asks for the stack of a batch's loader: a
    load is overdue once that is read, or has taken too long.
    """
    given_up = [batch for batch in in_flight.batches.values() if batch.hangs]
    shortest = min(BEHIND_A_STALL, limit) if given_up else limit
    late = [batch for batch in in_flight.awaited() if now - batch.since > shortest]
    if not late:
        return []
    state = loaded()
    first = next((batch.module for batch in given_up if _is_live(batch, state)), "")
    found = []
    for batch in late:
        is_live = _is_live(batch, state)
        if is_live and first:
            found.append(_stall(batch, f"{_ASYNC}: {first} was the first", now))
        elif now - batch.since > limit and _has_stack(batch, now, ask):
            found.append(_stall(batch, _ASYNC, now) if is_live else _hang(batch, now))
            first = first or (batch.module if is_live else "")
    return found


def deadline(in_flight: InFlight, limit: float, now: float) -> float | None:
    """When to call `overdue` next (monotonic, seconds); None: nothing is in flight."""
    if any(batch.hangs for batch in in_flight.batches.values()) and in_flight.awaited():
        return now + BEHIND_A_STALL
    waits = (max(0.0, batch.since + limit - now, (batch.answer_by or 0.0) - now) for batch in in_flight.awaited())
    return min((now + wait + 0.01 for wait in waits), default=None)


def _has_stack(batch: Batch, now: float, ask: Callable[[Batch], None]) -> bool:
    """Whether the stack is read or not to be waited for; the first time, it is asked for."""
    if batch.answer_by is None and batch.ask_stack(now):
        ask(batch)
    return now >= (batch.answer_by or 0.0)


def _is_live(batch: Batch, loaded: Loaded) -> bool:
    return isinstance(batch.step, Insmod) and loaded.state(batch.module) == "live"


def _evidence(batch: Batch) -> tuple[tuple[str, str], ...]:
    return (("KMODD_STACK", "\n".join(batch.stack)),) if batch.stack else ()


def _hang(batch: Batch, now: float) -> Overdue:
    step = batch.step
    where = f", in {batch.stack[0].split()[-1]}" if batch.stack else ""
    at = step.at if isinstance(step, Install | RemoveCommand) else None
    what = f"the command of {at}" if at else "it"
    outcome = Outcome(
        batch.job.plan.request, batch.module, "stuck", step.because, batch.path, duration_usec=batch.usec(now), at=at,
        detail=f"{what} is left alone{where}; the others go on", evidence=_evidence(batch),
    )  # fmt: skip
    return Overdue(batch, outcome)


def _stall(batch: Batch, why: str, now: float) -> Overdue:
    request, because, path, usec = batch.job.plan.request, batch.step.because, batch.path, batch.usec(now)
    stall = Outcome(
        request, batch.module, "stuck", because, path, duration_usec=usec, detail=why, evidence=_evidence(batch)
    )
    outcome = Outcome(request, batch.module, "loaded", because, path, duration_usec=usec)
    return Overdue(batch, outcome, is_live=True, stall=stall)
