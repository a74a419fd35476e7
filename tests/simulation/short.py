"""Events and commands as one line each, for the log of a simulation."""

from __future__ import annotations

from kmodd.engine.events import (
    Advance,
    Command,
    DevicesFound,
    Event,
    Finish,
    Log,
    MarkPolicy,
    ReadAhead,
    Requested,
    StartBatch,
    UeventReceived,
)


def short(what: Event | Command) -> str:
    """One line; empty for what says little."""
    name = type(what).__name__
    match what:
        case StartBatch(batch, steps):
            return f"{name} {batch} {' '.join(f'{type(step).__name__}:{step.module}' for step in steps)}"
        case UeventReceived(event):
            return f"{name} {event.action} {event.devpath} {' '.join(event.modaliases)}"
        case DevicesFound(events, replay):
            return f"{name} {replay} {' '.join(f'{event.sysname}={event.modaliases[0]}' for event in events)}"
        case Requested(request):
            pid = request.requester.pid if request.requester else 0
            return f"{name} {request.origin} {request.text} {pid}{' remove' * (request.removing is not None)}"
        case Finish(job):
            outcomes = " ".join(f"{each.module}={each.result}" for each in job.outcomes)
            return f"{name} {job.plan.request.origin} {job.plan.request.text}: {outcomes}"
        case Log(record):
            return f"{name} {record.message}"
        case ReadAhead() | MarkPolicy():
            return ""
        case Advance():
            return name
        case _:
            return str(what)[:160]
