"""The steps to load a request's modules, in order and with reasons: `Plan`.

`kmodd explain`, `modprobe -n` and `-D` and the daemon's dry run show the same plan that the loader executes. A plan is
immutable.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass
from kmodd.errors import Where
from kmodd.names import ModuleName
from kmodd.planning.refusals import refusal_of
from kmodd.planning.request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Cause = Literal["asked", "alias", "dep", "softdep_pre", "softdep_post", "boot"]
    SkipReason = Literal[
        "builtin", "live", "blacklisted", "blocked", "denied", "missing", "crashed", "depends", "no_match"
    ]
else:
    Cause = SkipReason = str


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an entry is in the plan."""

    kind: Cause
    of: str
    """asked, alias, boot: text of the request. dep, softdep_*: the module that needs the entry."""
    pattern: str = ""
    """alias: the pattern that matched, as its file spells it."""
    at: Where | None = None
    """alias, softdep_*, boot: place of that pattern or line."""

    def __str__(self) -> str:
        """Return the text after "because": `alias matched pci:v…* of modules.alias:12`, `dependency of x`."""
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
    """Step: load a file into the kernel."""

    module: ModuleName
    path: str
    """Path as printed: without `--root`, with `-d DIR`."""
    options: str
    because: Reason
    required: bool = True
    """Whether its failure ends the goal; that of a softdep does not."""
    foreign: str = ""
    """Why the file is not root's alone, as a predicate (`host/file_owner.py`); empty: it is."""
    offered: int | None = None
    """Descriptor of the caller's offer of that file; None: the loader opens the file."""


@dataclass(frozen=True, slots=True)
class Install:
    """Step: run an `install` command instead of loading the module."""

    module: ModuleName
    command: str
    """Verbatim, with `$CMDLINE_OPTS` not yet replaced."""
    options: str
    at: Where
    """Line of the command; its runner reads the command from there."""
    because: Reason
    required: bool = True
    alias: str = ""
    """The alias by which `options` lines may name the module, too; empty: none."""


@dataclass(frozen=True, slots=True)
class Skip:
    """A module that is not loaded, and why."""

    module: str
    reason: SkipReason
    because: Reason
    at: Where | None = None
    """blacklisted, blocked, denied: line of the blacklist or of the policy rule."""
    rule: str = ""
    """denied: text of the policy rule. blocked: what blocks the module. depends: why `of` does not come."""
    required: bool = True
    """missing: whether that ends the goal, as for a step."""
    of: str = ""
    """depends: the module that it needs and that does not come. denied: the module for whose sake; empty: for its own.
    """
    passes: bool = False
    """blocked: whether the request counts as answered, as by a command that succeeds (/bin/true)."""
    path: str = ""
    """missing: the file; empty: the tree names none."""

    def why(self) -> str:
        """Return the reason as text: `blacklisted at FILE:LINE`, `live`, `builtin`."""
        match self.reason:
            case "no_match":
                return "no match"
            case "missing":
                return f"its file {self.path} is missing" if self.path else "its file is missing"
            case "depends":
                return f"it would fail because of {self.of}, which is {self.rule}"
            case "blocked":
                return f"blocked at {self.at} by {self.rule}"
        words = f"{self.reason} by {self.rule}" if self.rule else self.reason
        return f"{words} at {self.at}" if self.at else words


Step = Insmod | Install
Entry = Step | Skip


@dataclass(frozen=True, slots=True)
class Rmmod:
    """Step: remove a module from the kernel."""

    module: ModuleName
    because: Reason


@dataclass(frozen=True, slots=True)
class RemoveCommand:
    """Step: run a `remove` command instead of removing the module."""

    module: ModuleName
    command: str
    """Verbatim; `$CMDLINE_OPTS` is empty here."""
    at: Where
    because: Reason


RemovalStep = Rmmod | RemoveCommand
"""A step of `kmodd.planning.removal`."""


def _comes(entry: Entry, *, blacklisted: bool = True) -> bool:
    """Return whether an entry leaves its module in the kernel, as far as that is known; `blacklisted`: for that one."""
    if isinstance(entry, Install):
        return refusal_of(entry.command) is None
    if not isinstance(entry, Skip):
        return True
    return entry.reason in ("live", "builtin") or (blacklisted and entry.reason == "blacklisted")


@dataclass(frozen=True, slots=True)
class Goal:
    """A module that the lookup found, and the entries that load it."""

    module: ModuleName
    entries: tuple[Entry, ...]
    """Entries in order of execution: dependencies and softdeps, the module itself, its post-softdeps."""
    complaints: tuple[str, ...] = ()
    """Messages that kmod writes to standard error for this goal at level ERROR, in order and without that word."""

    @property
    def comes(self) -> bool:
        """Whether the module would be in the kernel: it is there, or all that it requires would come.

        A blacklisted one counts, as `modprobe NAME` loads it, and an install command, unless it is known or looks to
        load nothing.
        """
        own = [entry for entry in self.entries if entry.module == self.module]
        needed = [entry for entry in self.entries if entry.required and entry.module != self.module]
        return any(map(_comes, own)) and all(_comes(entry, blacklisted=False) for entry in needed)


@dataclass(frozen=True, slots=True)
class Plan:
    """The goals of one request; none if nothing matched."""

    request: Request
    goals: tuple[Goal, ...]
    complaints: tuple[str, ...] = ()
    """Messages that kmod writes for the lookup, before those of the goals."""

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps of the goals, in order."""
        return tuple(e for goal in self.goals for e in goal.entries if not isinstance(e, Skip))

    @property
    def skips(self) -> tuple[Skip, ...]:
        """All skips of the goals, in order; one `no_match` if nothing matched."""
        if not self.goals:
            return (Skip(self.request.text, "no_match", Reason("asked", self.request.text)),)
        return tuple(e for goal in self.goals for e in goal.entries if isinstance(e, Skip))
