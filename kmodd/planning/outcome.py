"""The result of one entry of a plan: `Outcome`."""

from __future__ import annotations

from kmodd.dataclass import dataclass
from kmodd.errors import Where
from kmodd.planning.plan import Reason, Skip
from kmodd.planning.request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, Protocol

    Result = Literal[
        "loaded", "live", "builtin", "blacklisted", "denied", "missing", "failed", "crashed", "stuck", "nomatch",
        "not_attempted", "removed", "in_use", "absent", "not_removed",
    ]  # fmt: skip
    """The values of the journal field KMODD_RESULT; the last four are of removing."""
else:
    Protocol, Result = object, str

DRY_RUN = "dry run"
"""Why nothing is attempted in a dry run."""

KEPT_OUT = "somebody removed it while its device was there; it comes back by modprobe or with a new device"
OVERRIDDEN = "driver_override is set for its device, or a probe holds the device"
"""Why a look at what is there does not load it."""

ASKS_FOR_ITSELF = "it is being started, and that start waits for this answer"
"""Why an init that makes the kernel ask for its own module, or for one that waits for it, is not waited for."""


@dataclass(frozen=True, slots=True)
class LoadError:
    """Why the kernel refused, and how much that matters."""

    level: int
    """syslog(3)."""
    words: str
    """For an administrator to act on; may be empty."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one entry of a plan."""

    request: Request
    module: str
    result: Result
    because: Reason
    path: str = ""
    errno: int = 0
    duration_usec: int = 0
    """From handing it to the kernel until the kernel answered."""
    at: Where | None = None
    """The line that blacklists or denies, or the install command's."""
    rule: str = ""
    detail: str = ""
    """What else is worth a word: a dependency that failed, a dry run."""
    by_kernel: bool = False
    """failed: the module's own init refused, not its file or an install command."""
    evidence: tuple[tuple[str, str], ...] = ()
    """Further journal fields: what the kernel said, where it hangs."""
    load_error: LoadError | None = None
    """The kernel's refusal, explained."""

    @property
    def ok(self) -> bool:
        """The module is in the kernel now."""
        return self.result in ("loaded", "live", "builtin")


def of_skip(request: Request, skip: Skip) -> Outcome:
    """A skip of the plan is an outcome at once."""
    result: Result = "nomatch" if skip.reason == "no_match" else skip.reason
    return Outcome(request, skip.module, result, skip.because, at=skip.at, rule=skip.rule)


class Planned(Protocol):
    """A step of loading or of removing."""

    @property
    def module(self) -> str:
        """Its name."""

    @property
    def because(self) -> Reason:
        """Why it stands in the plan."""


def not_attempted(request: Request, step: Planned, why: str) -> Outcome:
    """A step that was planned and not tried."""
    return Outcome(request, step.module, "not_attempted", step.because, detail=why)
