"""A step as a call to whoever carries it out, and what was replied as an outcome: the same for a loader and a tool."""

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
    """How a loader is told: of one step, or of files that follow one another. `real`: where to open what is printed."""
    step = steps[0]
    match step:
        case Insmod():
            files = [each for each in steps if isinstance(each, Insmod)]
            calls = tuple(InsmodRequest(real(each.path), each.options) for each in files)
            call: LoaderRequest = InsmodRunRequest(calls, tuple(each.module for each in files))
        case Install():
            call = ShellRequest(step.module, step.at, real(step.at.file), step.options)
        case Rmmod():
            call = RmmodRequest(step.module)
        case RemoveCommand():
            call = ShellRequest(step.module, step.at, real(step.at.file), "")
        case _:
            assert_never(step)
    return call


def outcome_of(request: Request, step: Step | RemovalStep, reply: Reply, facts: KernelFacts | None = None) -> Outcome:
    """What a reply means for its step; `facts` make a refusal of the kernel plainer."""
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
    """What it means that a loader died at a step; `state`: the module's in /proc/modules then.

    An oops takes its caller along and leaves the name in `coming`; a kill leaves it live or gone.
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
