"""The steps to load a request's modules, in order and with reasons: `Plan`.

`kmodd explain`, `modprobe -n` and `-D` and the daemon's dry run show the same plan that the loader executes. A plan is
immutable.
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


_REFUSERS = frozenset(("true", "false", "exit", ":"))
_FOLDERS = frozenset(("", "/bin", "/sbin", "/usr/bin", "/usr/sbin"))


def refusal_of(command: str) -> int | None:
    """Return the exit status of an install command that is known to load nothing, None for any other command.

    Such commands are /bin/false, /bin/true, `exit 1` and their kin, which keep a module out.
    """
    if not set(command).isdisjoint(";&|<>$`()\n"):
        return None
    words = command.partition(" #")[0].split()
    folder, slash, name = words[0].rpartition("/") if words else ("", "", "")
    if name not in _REFUSERS or folder not in _FOLDERS or (slash and name in ("exit", ":")):
        return None
    if name == "exit":
        return int(words[1]) & 255 if len(words) == 2 and words[1].isdecimal() and len(words[1]) <= 3 else None
    return int(name == "false")


@dataclass(frozen=True, slots=True)
class Skip:
    """A module that is not loaded, and why."""

    module: str
    reason: SkipReason
    because: Reason
    at: Where | None = None
    """blacklisted, blocked, denied: line of the blacklist or of the policy rule."""
    rule: str = ""
    """denied: text of the policy rule. blocked: what blocks the module."""
    required: bool = True
    """missing: whether that ends the goal, as for a step."""
    of: str = ""
    """depends: the module that it needs and that is blocked. denied: the module for whose sake; empty: for its own."""
    passes: bool = False
    """blocked: whether what needs it is tried all the same, as after a command that succeeds (/bin/true)."""

    def why(self) -> str:
        """Return the reason as text: `blacklisted at FILE:LINE`, `live`, `builtin`."""
        words = {"no_match": "no match", "missing": "its file is missing"}.get(self.reason, self.reason)
        if self.reason == "depends":
            words = f"{self.of} is blocked"
        if self.rule:
            words += f" by {self.rule}"
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


@dataclass(frozen=True, slots=True)
class Goal:
    """A module that the lookup found, and the entries that load it."""

    module: ModuleName
    entries: tuple[Entry, ...]
    """Entries in order of execution: dependencies and softdeps, the module itself, its post-softdeps."""
    complaints: tuple[str, ...] = ()
    """Messages that kmod writes to standard error for this goal at level ERROR, in order and without that word."""


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
