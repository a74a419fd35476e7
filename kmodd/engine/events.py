"""What the engine is given and what it gives back: `Event` and `Command`, two closed unions of frozen values."""

from __future__ import annotations

from kmodd.config.modules_load_d import BootList
from kmodd.config.policy_d import Rule
from kmodd.dataclass import dataclass
from kmodd.kernel.kmsg import KernelLine
from kmodd.kernel.uevent import Uevent
from kmodd.planning.decision import Decision
from kmodd.planning.job import Job
from kmodd.planning.outcome import Outcome
from kmodd.planning.plan import RemovalStep, Step
from kmodd.planning.record import NO_SUBJECT, Record, Subject
from kmodd.planning.removal import RemovalJob
from kmodd.planning.reply import Reply
from kmodd.planning.request import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Replay = Literal["all", "drift"]
    """Which devices of sysfs are read again: every device, or those without a driver."""

    Busy = Literal["no_room", "no_tree"]
    """Why a request is not taken."""
else:
    Replay = Busy = str

AnyJob = Job | RemovalJob

# -- events --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The daemon has started: read everything and adopt the loads that are under way."""


@dataclass(frozen=True, slots=True)
class UeventReceived:
    """The kernel sent a uevent."""

    event: Uevent


@dataclass(frozen=True, slots=True)
class UeventsLost:
    """The kernel dropped uevents: the receive buffer was full."""


@dataclass(frozen=True, slots=True)
class DevicesFound:
    """sysfs was read: the devices there, as events. `replay`: what it was read for; None: coldplug."""

    events: tuple[Uevent, ...]
    replay: Replay | None = None


@dataclass(frozen=True, slots=True)
class BootListRead:
    """modules-load.d and the command line were read."""

    listed: BootList


@dataclass(frozen=True, slots=True)
class Requested:
    """An operator or the kernel asks for a module and waits for the answer."""

    request: Request


@dataclass(frozen=True, slots=True)
class LoaderNamed:
    """The loader of a batch has told its process number."""

    batch: int
    pid: int


@dataclass(frozen=True, slots=True)
class LoaderReplied:
    """A loader has answered the current step of a batch."""

    batch: int
    reply: Reply


@dataclass(frozen=True, slots=True)
class LoaderDied:
    """The loader of a batch has ended without an answer: killed, or by an oops."""

    batch: int
    begun: bool
    """False: it had not read the request."""
    kernel_log: tuple[KernelLine, ...] = ()
    """The latest lines of the kernel log."""


@dataclass(frozen=True, slots=True)
class NotStarted:
    """A batch could not be given to a loader."""

    batch: int
    why: str
    too_long: bool = False
    """The batch is longer than one datagram: no loader can take it."""


@dataclass(frozen=True, slots=True)
class StackRead:
    """The kernel stack of a loader, innermost frame first; empty where it cannot be read."""

    batch: int
    frames: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LoaderLook:
    """What the task of a loader does at one moment."""

    batch: int
    is_asleep: bool
    """It waits for something (state S or D in /proc/PID/stat)."""
    ticks: int
    """The processor time that it has taken, in clock ticks."""


@dataclass(frozen=True, slots=True)
class LoadersSeen:
    """The loaders in use were looked at; those that have ended are left out."""

    looks: tuple[LoaderLook, ...]


@dataclass(frozen=True, slots=True)
class KernelLogged:
    """The kernel log has new lines that name firmware."""

    lines: tuple[KernelLine, ...]


@dataclass(frozen=True, slots=True)
class FilesChanged:
    """Files changed in a watched directory."""


@dataclass(frozen=True, slots=True)
class CheckFiles:
    """Read indexes and configuration again if they changed: the next answer rests on them."""


@dataclass(frozen=True, slots=True)
class ReloadRequested:
    """Read the configuration and changed indexes again (SIGHUP, `kmodd reload`)."""


@dataclass(frozen=True, slots=True)
class SealRequested:
    """Set or remove the seal."""

    sealed: bool


@dataclass(frozen=True, slots=True)
class WatchOpened:
    """The file watch was opened, or cannot be: from now on it is asked, or every file is."""


@dataclass(frozen=True, slots=True)
class BootFinished:
    """All devices and the boot list are answered."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: do what is due."""


@dataclass(frozen=True, slots=True)
class Advance:
    """Everything that was received is queued: resolve and start what can be started."""


Event = (
    Started
    | UeventReceived
    | UeventsLost
    | DevicesFound
    | BootListRead
    | Requested
    | LoaderNamed
    | LoaderReplied
    | LoaderDied
    | NotStarted
    | StackRead
    | LoadersSeen
    | KernelLogged
    | FilesChanged
    | CheckFiles
    | ReloadRequested
    | SealRequested
    | WatchOpened
    | BootFinished
    | Tick
    | Advance
)

# -- commands ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartBatch:
    """Give these steps to one loader. Answered by LoaderNamed, LoaderReplied, LoaderDied or NotStarted."""

    batch: int
    steps: tuple[Step | RemovalStep, ...]


@dataclass(frozen=True, slots=True)
class StopBatch:
    """Have the loader end the batch after the current step."""

    batch: int


@dataclass(frozen=True, slots=True)
class StartProbe:
    """Have a loader bind a device again (drivers_probe). Answered like StartBatch, by one reply."""

    batch: int
    bus: str
    device: str


@dataclass(frozen=True, slots=True)
class AskStack:
    """Read the kernel stack of the loader of a batch. Answered by StackRead."""

    batch: int
    pid: int


@dataclass(frozen=True, slots=True)
class DropStack:
    """Do not wait for the kernel stack of the loader of a batch any longer."""

    batch: int


@dataclass(frozen=True, slots=True)
class LookAtLoaders:
    """See whether these loaders sleep. Answered by LoadersSeen."""

    loaders: tuple[tuple[int, int], ...]
    """Number of batch and process number of each."""


@dataclass(frozen=True, slots=True)
class ReadAhead:
    """Have the disk read these files, and a child the names of these devices; nothing waits for either."""

    paths: tuple[str, ...]
    """As printed."""
    devices: tuple[str, ...] = ()
    """Paths below /sys."""


@dataclass(frozen=True, slots=True)
class Log:
    """Write a record to the journal."""

    record: Record
    about: Decision | Outcome | None = None
    """What it was made from; None: it is about no request."""
    subject: Subject = NO_SUBJECT


@dataclass(frozen=True, slots=True)
class Finish:
    """A job is complete: answer who waits for it."""

    job: AnyJob


@dataclass(frozen=True, slots=True)
class TurnAway:
    """A request that was asked for is not taken."""

    request: Request
    why: Busy


@dataclass(frozen=True, slots=True)
class ReplayDevices:
    """Read sysfs again. Answered by DevicesFound. For "all", devices without a modalias file are asked, too."""

    replay: Replay


@dataclass(frozen=True, slots=True)
class PolicyMarks:
    """What of the policy outlives the daemon."""

    sealed: bool = False
    closed: bool = False
    """The kernel's helper refuses what the daemon does not answer."""
    booted: bool = False
    """All devices of this boot were answered."""
    rules: tuple[Rule, ...] | None = None
    """The last rules of policy.d without a mistake; None: there were none in this boot."""


@dataclass(frozen=True, slots=True)
class MarkPolicy:
    """Keep these marks below /run."""

    marks: PolicyMarks
    spent: str = ""
    """Flag of a rule that allowed a single load, which was made: it is removed; empty: none."""


Command = (
    StartBatch
    | StopBatch
    | StartProbe
    | AskStack
    | DropStack
    | LookAtLoaders
    | ReadAhead
    | Log
    | Finish
    | TurnAway
    | ReplayDevices
    | MarkPolicy
)
