"""The result of one entry of a plan: `Outcome`."""

from __future__ import annotations

import errno

from kmodd.dataclass import dataclass
from kmodd.errors import Where
from kmodd.planning.plan import Install, Reason, Skip, Step
from kmodd.planning.request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, Protocol

    Result = Literal[
        "loaded", "live", "builtin", "blacklisted", "denied", "blocked", "missing", "failed", "crashed", "stuck",
        "nomatch", "not_attempted", "removed", "in_use", "absent", "not_removed",
    ]  # fmt: skip
    """Values of the journal field KMODD_RESULT; the last four are results of removals."""
else:
    Protocol, Result = object, str

DRY_RUN = "dry run"
"""Detail of steps not attempted in a dry run."""

KEPT_OUT = (
    "it was removed while its device was present; it stays unloaded until it is loaded explicitly or the device is "
    "plugged in again"
)
OVERRIDDEN = "its device has driver_override set, or is locked by a running probe"
"""Details of steps that a replay of sysfs does not attempt."""

ASKS_FOR_ITSELF = "it is already being loaded, and its init waits for this request"
"""Detail of a request by a module's init for itself, or for a module that waits for it: waiting would deadlock.

The same for a process of an install command.
"""

LOADER_KILLED = "its loader was killed"
DEPENDENCY_REMOVED = "a module that it needs was removed meanwhile"
"""Details of failures that need not repeat."""

HAS_PARAMETERS = "its install command takes options from modprobe.d only; run modprobe for parameters of this call"
"""Detail of an operator's request with parameters: a command that the daemon has run gets none from the daemon."""


@dataclass(frozen=True, slots=True)
class LoadError:
    """Why the kernel refused a module."""

    level: int
    """Priority, as in syslog(3)."""
    words: str
    """Explanation for the administrator; may be empty."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one entry of a plan."""

    request: Request
    module: str
    result: Result
    because: Reason
    path: str = ""
    """File of the module; empty: none was used."""
    errno: int = 0
    duration_usec: int = 0
    """Duration of the call to the kernel, or of the command, in µs."""
    at: Where | None = None
    """Line of the blacklist, of the policy rule, or of the install command."""
    rule: str = ""
    """denied: the policy rule. blocked: what blocks the module."""
    command: str = ""
    """The install command that is run, or would be, in place of the load."""
    detail: str = ""
    """Further reason for the message: a failed dependency, a dry run."""
    by_kernel: bool = False
    """failed: the kernel or the module's init refused, not the loader or an install command."""
    evidence: tuple[tuple[str, str], ...] = ()
    """Further journal fields: messages of the kernel, its stack."""
    of: str = ""
    """denied: the module for whose sake; empty: for its own."""
    foreign: str = ""
    """Why the file is not root's alone, as a predicate; empty: it is, or none was used."""
    load_error: LoadError | None = None
    """Explanation of the kernel's errno."""
    build_id: str = ""
    """loaded: the build ID of the code, in hexadecimal digits; empty: not known."""

    @property
    def ok(self) -> bool:
        """Whether the module is in the kernel now."""
        return self.result in ("loaded", "live", "builtin")


def of_skip(request: Request, skip: Skip) -> Outcome:
    """Return the outcome of a skip, which needs no execution."""
    if skip.reason == "depends":
        return Outcome(request, skip.module, "not_attempted", skip.because, detail=f"{skip.of} is {skip.rule}")
    result: Result = "nomatch" if skip.reason == "no_match" else skip.reason
    number = errno.EPERM if result == "blocked" and not skip.passes else 0
    return Outcome(
        request, skip.module, result, skip.because, skip.path, number, at=skip.at, rule=skip.rule, of=skip.of
    )


def gets_parameters(request: Request, step: Step) -> bool:
    """Return whether a step is the install command of a goal that parameters were given for."""
    return bool(request.params) and isinstance(step, Install) and step.because.kind in ("asked", "alias")


class Planned(Protocol):
    """A step of loading or of removing."""

    @property
    def module(self) -> str:
        """Name of the module."""

    @property
    def because(self) -> Reason:
        """Why the step is in the plan."""


def not_attempted(request: Request, step: Planned, why: str) -> Outcome:
    """Return the outcome of a planned step that was not tried. why: the reason, for the message."""
    at, command = (step.at, step.command.strip()) if isinstance(step, Install) else (None, "")
    return Outcome(request, step.module, "not_attempted", step.because, at=at, detail=why, command=command)
