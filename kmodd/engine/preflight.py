"""What can be decided about a step without a loader: `preflight_outcome`."""

from __future__ import annotations

import errno

from kmodd.engine.state import EngineState
from kmodd.planning.outcome import HAS_PARAMETERS, KEPT_OUT, Outcome, not_attempted, of_refusal
from kmodd.planning.plan import Install, Step
from kmodd.planning.request import Request


def preflight_outcome(state: EngineState, request: Request, step: Step) -> Outcome | None:
    """The outcome of `step` if it can be decided without a loader, else None.

    A live module is loaded; what policy refuses, what has crashed, hangs or is kept out is not tried, nor what refused
    before where only a replay asks again.
    """
    name = step.module
    loaded = state.system.loaded()
    if loaded.state(name) == "live":
        return Outcome(request, name, "live", step.because)
    if refused := state.policy.refusal(request, step):  # rules or seal may be newer than the plan
        return refused
    if state.quarantine.has_crashed(name, loaded):
        detail = "before, and is not tried again until the next boot"
        return Outcome(request, name, "crashed", step.because, detail=detail)
    if name in state.stuck():
        return Outcome(request, name, "stuck", step.because, detail="since before this was asked for")
    if state.quarantine.is_kept_out(name, request):
        return not_attempted(request, step, KEPT_OUT)
    # A command that keeps a module out is the administrator's will, not a failure; modprobe prints its failure.
    if request.origin != "operator" and (blocked := of_refusal(request, step)):
        return blocked
    if request.params and isinstance(step, Install):
        return not_attempted(request, step, HAS_PARAMETERS)
    refusal = state.results.refusal(name)
    if refusal and request.synthetic and not request.again:
        detail = f"it has refused with {errno.errorcode.get(refusal, refusal)}"
        return Outcome(request, name, "not_attempted", step.because, errno=refusal, detail=detail)
    return None
