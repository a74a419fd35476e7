"""What we will do, one thing after the other, and why: the `Plan`.

The very same plan is shown by `kmodd explain`, `modprobe -n` and `-D`, by the daemon's dry run,
and carried out by the loader. Nothing in it changes after it was made.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass
from kmodd.errors import Where
from kmodd.names import ModuleName
from kmodd.planning.request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Cause = Literal["asked", "alias", "dep", "softdep_pre", "softdep_post", "boot"]
    SkipReason = Literal["builtin", "live", "blacklisted", "denied", "missing", "crashed", "no_match"]
else:
    Cause = SkipReason = str


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an entry stands in the plan."""

    kind: Cause
    of: str
    """asked, alias, boot: the request's text. dep, softdep_*: the module that wants it."""
    pattern: str = ""
    """alias: the pattern that matched, as its file spells it."""
    at: Where | None = None
    """alias, softdep_*, boot: where that pattern or line stands."""

    def __str__(self) -> str:
        """Words that follow "because": `alias matched pci:v…* of modules.alias:12`, `dependency of x`."""
        place = f" of {self.at}" if self.at else ""
        match self.kind:
            case "asked":
                return "asked for"
            case "boot":
                return f"listed in {self.at}" if self.at else "listed to be loaded at boot"
            case "alias":
                return f"alias matched {self.pattern}{place}"
            case "dep":
                return f"dependency of {self.of}"
            case "softdep_pre" | "softdep_post":
                return f"softdep of {self.of}{' in ' + str(self.at) if self.at else ''}"


@dataclass(frozen=True, slots=True)
class Insmod:
    """Give one file to the kernel."""

    module: ModuleName
    path: str
    """As printed: without `--root`, with `-d DIR`."""
    options: str
    because: Reason
    required: bool = True
    """Its failure ends the goal it stands in; a softdep's failure does not."""


@dataclass(frozen=True, slots=True)
class Install:
    """Run an `install` command in place of loading the module."""

    module: ModuleName
    command: str
    """Verbatim, `$CMDLINE_OPTS` not yet replaced."""
    options: str
    at: Where
    """The line of the command. A loader reads it there itself."""
    because: Reason
    required: bool = True


@dataclass(frozen=True, slots=True)
class Skip:
    """A module that is not touched, and why not."""

    module: str
    reason: SkipReason
    because: Reason
    at: Where | None = None
    """blacklisted, denied: the line that says so."""
    rule: str = ""
    """denied: the name of the policy's rule."""
    required: bool = True
    """missing: whether that ends the goal it stands in, as with a step."""

    def why(self) -> str:
        """The reason in words: `blacklisted at FILE:LINE`, `live`, `builtin`."""
        words = {"no_match": "no match", "missing": "its file is missing"}.get(self.reason, self.reason)
        if self.rule:
            words += f" by {self.rule}"
        return f"{words} at {self.at}" if self.at else words


Step = Insmod | Install
Entry = Step | Skip


@dataclass(frozen=True, slots=True)
class Rmmod:
    """Have the kernel remove one module."""

    module: ModuleName
    because: Reason


@dataclass(frozen=True, slots=True)
class RemoveCommand:
    """Run a `remove` command in place of removing the module."""

    module: ModuleName
    command: str
    """Verbatim; `$CMDLINE_OPTS` stands for nothing here."""
    at: Where
    because: Reason


RemovalStep = Rmmod | RemoveCommand
"""What `kmodd.planning.removal` plans."""


@dataclass(frozen=True, slots=True)
class Goal:
    """One hit of the look-up: what brings this one module in, in order, itself last but for its post-softdeps."""

    module: ModuleName
    entries: tuple[Entry, ...]
    complaints: tuple[str, ...] = ()
    """What kmod writes to standard error while it makes this goal, at level ERROR; in order, without that word."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The goals of one request. No goals: nothing matched."""

    request: Request
    goals: tuple[Goal, ...]
    complaints: tuple[str, ...] = ()
    """Likewise, while it looks the request up, before the first goal."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """What is to be done, in order."""
        return tuple(e for goal in self.goals for e in goal.entries if not isinstance(e, Skip))

    @property
    def skips(self) -> tuple[Skip, ...]:
        """What is not done, in order; one `no_match` where nothing matched."""
        if not self.goals:
            return (Skip(self.request.text, "no_match", Reason("asked", self.request.text)),)
        return tuple(e for goal in self.goals for e in goal.entries if isinstance(e, Skip))
