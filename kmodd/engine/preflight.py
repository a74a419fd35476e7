"""What can be decided about a step without a loader: `preflight_outcome`."""

from __future__ import annotations

import errno

from kmodd.engine.state import EngineState
from kmodd.names import module_of_path
from kmodd.planning.outcome import HAS_PARAMETERS, KEPT_OUT, Outcome, gets_parameters, not_attempted
from kmodd.planning.plan import Insmod, Step
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
        return Outcome(request, name, "stuck", step.because)
    if why := _blocking_dependency(state, step):
        return not_attempted(request, step, why)
    if state.quarantine.is_kept_out(name, request):
        return not_attempted(request, step, KEPT_OUT)
    if gets_parameters(request, step):
        return not_attempted(request, step, HAS_PARAMETERS)
    refusal = state.results.refusal(name)
    if refusal and request.synthetic and not request.again:
        detail = f"it has refused with {errno.errorcode.get(refusal, refusal)}"
        return Outcome(request, name, "not_attempted", step.because, errno=refusal, detail=detail)
    return None


def _blocking_dependency(state: EngineState, step: Step) -> str:
    """Why a load of `step` would only block in the kernel; empty: it would not.

    The kernel waits 30 s for a dependency whose init crashed or hangs (kernel/module/main.c, resolve_symbol_wait). A
    dependency of a softdep may fail without an effect on the steps behind it.
    """
    crashed, stuck = state.quarantine.crashed, state.stuck()
    snapshot = state.system.snapshot
    if not (crashed or stuck) or snapshot is None or not isinstance(step, Insmod):
        return ""
    line = snapshot.catalog.dep(step.module)
    for name in map(module_of_path, line.deps if line else ()):
        if state.quarantine.has_crashed(name, state.system.loaded()):
            return f"{name} crashed in the kernel"
        if name in stuck and state.system.loaded().state(name) != "live":
            return f"{name} has not finished its init"
    return ""
