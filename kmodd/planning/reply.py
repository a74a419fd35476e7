"""What a loader or the kernel replies to a step, and the outcome that it means."""

from __future__ import annotations

import errno

from kmodd.dataclass import dataclass
from kmodd.kernel.proc_modules import State
from kmodd.planning.load_errors import KernelFacts, of_load, of_removal
from kmodd.planning.outcome import LOADER_KILLED, Outcome, Result
from kmodd.planning.plan import Insmod, Install, RemovalStep, RemoveCommand, Rmmod, Step
from kmodd.planning.request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Stage = Literal["file", "kernel", "command", "signal", "none"]
    """Source of an errno: opening or unpacking the file, the kernel, an install or remove command, a signal.

    ENOENT of the kernel means an unknown symbol, ENOENT of open(2) a missing file. none: the step was not started, as
    its run ended before it.
    """
else:
    Stage = str


@dataclass(frozen=True, slots=True)
class Reply:
    """The result of one step."""

    errno: int
    """0 on success."""
    stage: Stage
    usec: int
    """Duration in µs."""
    detail: str = ""
    """The reason in words if errno says too little."""
    status: str = ""
    """Exit status of a command, or the name of the signal that killed it; empty if none ended."""
    output: str = ""
    """The last part of what the command wrote, escaped."""
    build_id: str = ""
    """Of the module that was loaded, as the kernel shows it, in hexadecimal digits; empty: it shows none."""


def outcome_of(request: Request, step: Step | RemovalStep, reply: Reply, facts: KernelFacts | None = None) -> Outcome:
    """Return the outcome of a step from its reply. `facts` help to explain why the kernel refused a module."""
    path, foreign = (step.path, step.foreign) if isinstance(step, Insmod) else ("", "")
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
    fields = (("KMODD_COMMAND_STATUS", reply.status), ("KMODD_COMMAND_OUTPUT", reply.output))
    return Outcome(
        request, step.module, result, step.because, path, code, reply.usec, at,
        detail=detail, by_kernel=by_kernel, foreign=foreign, load_error=refusal, build_id=reply.build_id,
        evidence=tuple((name, value) for name, value in fields if value),
    )  # fmt: skip


def outcome_of_death(request: Request, step: Step | RemovalStep, state: State | None, usec: int) -> Outcome:
    """Return the outcome of a step during which the loader died.

    state: the module's in /proc/modules afterwards. An oops ends the loader and leaves the module `coming`; a kill
    leaves it live or absent. usec: µs that the step took.
    """
    path, foreign = (step.path, step.foreign) if isinstance(step, Insmod) else ("", "")
    at = step.at if isinstance(step, Install | RemoveCommand) else None
    result: Result
    if isinstance(step, Rmmod | RemoveCommand):
        result = "not_removed" if state else "removed"
    else:
        result = "loaded" if state == "live" else "crashed" if state else "failed"
    detail = LOADER_KILLED if result in ("failed", "not_removed") else ""
    return Outcome(request, step.module, result, step.because, path, 0, usec, at, detail=detail, foreign=foreign)
