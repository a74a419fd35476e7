"""From a step of a plan to a request for a loader, and from a reply to an outcome, for the daemon and for tools."""

from __future__ import annotations

import errno

from kmodd.errors import assert_never
from kmodd.kernel.proc_modules import State
from kmodd.loader.actions import Reply
from kmodd.loader.protocol import InsmodRequest, InsmodRunRequest, LoaderRequest, RmmodRequest, ShellRequest
from kmodd.planning.load_errors import KernelFacts, of_load, of_removal
from kmodd.planning.outcome import Outcome, Result
from kmodd.planning.plan import Insmod, Install, RemovalStep, RemoveCommand, Rmmod, Step
from kmodd.planning.request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def request_for(steps: tuple[Step | RemovalStep, ...], real: Callable[[str], str]) -> LoaderRequest:
    """Return the request for one step, or for a run of several Insmod steps.

    real: maps a printed path to the path to open.
    """
    step = steps[0]
    match step:
        case Insmod():
            files = [each for each in steps if isinstance(each, Insmod)]
            requests = tuple(InsmodRequest(real(each.path), each.options) for each in files)
            request: LoaderRequest = InsmodRunRequest(requests, tuple(each.module for each in files))
        case Install():
            request = ShellRequest(step.module, step.at, real(step.at.file), step.options)
        case Rmmod():
            request = RmmodRequest(step.module)
        case RemoveCommand():
            request = ShellRequest(step.module, step.at, real(step.at.file), "")
        case _:
            assert_never(step)
    return request


def outcome_of(request: Request, step: Step | RemovalStep, reply: Reply, facts: KernelFacts | None = None) -> Outcome:
    """Return the outcome of a step from its reply. `facts` help to explain why the kernel refused a module."""
    path = step.path if isinstance(step, Insmod) else ""
    at = step.at if isinstance(step, Install | RemoveCommand) else None
    detail = reply.detail
    code = reply.errno
    result: Result
    if isinstance(step, Rmmod | RemoveCommand):
        result = "not_removed" if code else "removed"
    elif not code:
        result = "loaded"
    elif reply.stage == "kernel" and code == errno.EEXIST:
        result, code, detail = "live", 0, ""
    elif reply.stage == "file" and code == errno.ENOENT:
        result, detail = "missing", ""
    else:
        result = "failed"
    by_kernel = reply.stage == "kernel"
    refusal = None
    if by_kernel and code:
        refusal = of_load(step.module, code, facts) if result == "failed" else of_removal(code, facts)
    return Outcome(
        request, step.module, result, step.because, path, code, reply.usec, at,
        detail=detail, by_kernel=by_kernel, load_error=refusal,
    )  # fmt: skip


def outcome_of_death(request: Request, step: Step | RemovalStep, state: State | None, usec: int) -> Outcome:
    """Return the outcome of a step during which the loader died.

    state: the module's in /proc/modules afterwards. An oops ends the loader and leaves the module `coming`; a kill
    leaves it live or absent. usec: µs that the step took.
    """
    path = step.path if isinstance(step, Insmod) else ""
    at = step.at if isinstance(step, Install | RemoveCommand) else None
    result: Result
    if isinstance(step, Rmmod | RemoveCommand):
        result = "not_removed" if state else "removed"
    else:
        result = "loaded" if state == "live" else "crashed" if state else "failed"
    detail = "its loader was killed" if result in ("failed", "not_removed") else ""
    return Outcome(request, step.module, result, step.because, path, 0, usec, at, detail=detail)
