"""From the steps of a plan to a request for a loader or a command runner."""

from __future__ import annotations

from kmodd.errors import assert_never
from kmodd.loader.protocol import (
    CommandRequest,
    InsmodRequest,
    InsmodRunRequest,
    LoaderRequest,
    OfferedRequest,
    RmmodRequest,
)
from kmodd.planning.plan import Insmod, Install, RemovalStep, RemoveCommand, Rmmod, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def request_for(steps: tuple[Step | RemovalStep, ...], real: Callable[[str], str]) -> LoaderRequest | CommandRequest:
    """Return the request for one step, or for a run of several Insmod steps.

    real: maps a printed path to the path to open.
    """
    step = steps[0]
    match step:
        case Insmod() if step.offered is not None:
            request: LoaderRequest | CommandRequest = OfferedRequest(step.path, step.options, step.offered)
        case Insmod():
            files = [each for each in steps if isinstance(each, Insmod)]
            requests = tuple(InsmodRequest(real(each.path), each.options) for each in files)
            request = InsmodRunRequest(requests, tuple(each.module for each in files))
        case Install():
            request = CommandRequest("install", step.module, step.at, real(step.at.file), step.alias)
        case Rmmod():
            request = RmmodRequest(step.module)
        case RemoveCommand():
            request = CommandRequest("remove", step.module, step.at, real(step.at.file))
        case _:
            assert_never(step)
    return request
