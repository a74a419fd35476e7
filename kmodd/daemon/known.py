"""What comes of a step without trying it: it is live, refused by policy, has crashed, is kept out. A `Known`."""

from __future__ import annotations

import errno

from kmodd.daemon.system_state import SystemState
from kmodd.planning.outcome import KEPT_OUT, Outcome, not_attempted
from kmodd.planning.plan import Step
from kmodd.planning.request import Request
from kmodd.state.quarantine import Quarantine
from kmodd.state.result_cache import ResultCache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Known:
    """Asks everybody who may know."""

    def __init__(
        self, view: SystemState, standing: Quarantine, answers: ResultCache, stuck: Callable[[], list[str]]
    ) -> None:
        """`stuck` gives the modules whose load does not end."""
        self._view = view
        self._guard = view.guard
        self._standing = standing
        self._answers = answers
        self._stuck = stuck

    def outcome(self, request: Request, step: Step) -> Outcome | None:
        """What comes of it; None: it has to be tried."""
        name = step.module
        loaded = self._view.loaded()
        if loaded.state(name) == "live":
            return Outcome(request, name, "live", step.because)
        if refused := self._guard.refusal(request, step):  # rules or seal may be newer than the plan
            return refused
        if self._standing.has_crashed(name, loaded):
            detail = "before, and is not tried again until the next boot"
            return Outcome(request, name, "crashed", step.because, detail=detail)
        if name in self._stuck():
            return Outcome(request, name, "stuck", step.because, detail="since before this was asked for")
        if self._standing.is_kept_out(name, request):
            return not_attempted(request, step, KEPT_OUT)
        refusal = self._answers.refusal(name)
        if refusal and request.synthetic and not request.again:
            detail = f"it has refused with {errno.errorcode.get(refusal, refusal)}"
            return Outcome(request, name, "not_attempted", step.because, errno=refusal, detail=detail)
        return None
