"""What the daemon does in each round, and in which order, once its sources are read: `go_round`.

The daemon and the simulated machine of the tests both call it.
"""

from __future__ import annotations

from kmodd.daemon.startup import Startup
from kmodd.dataclass import dataclass
from kmodd.engine.engine import Engine
from kmodd.engine.events import Advance, BootFinished, Event, FilesChanged, Tick, WatchOpened

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class RoundActions:
    """What a round has done outside of the engine."""

    handle: Callable[[Event], None]
    """Have the engine handle an event, and carry out its commands."""
    pop_changes: Callable[[float], bool]
    """Whether changed files are to be read now (monotonic, seconds); they count as read."""
    watch_files: Callable[[], None]
    """Watch the files that are there now."""
    report_ready: Callable[[], None]
    """The boot list is answered, or its time is over."""
    open_trace: Callable[[], bool]
    """Open the trace of requests; False: it is open, or not needed."""
    open_watch: Callable[[float], None]
    """Open the watch of files (monotonic, seconds)."""
    settle: Callable[[], None]
    """Answer those who wait until all devices are answered, if they are."""


def begin(engine: Engine, startup: Startup, actions: RoundActions, now: float) -> None:
    """Begin to wait for the boot list at `now` (monotonic, seconds). Without one, READY is reported at once."""
    startup.begin(now)
    _finish_boot_list(engine, startup, actions, now)


def _finish_boot_list(engine: Engine, startup: Startup, actions: RoundActions, now: float) -> None:
    """Report READY if the boot list is answered, or cannot be, or its time is over."""
    state = engine.state
    is_answered = not state.queue.boot_left or bool(state.system.no_tree)
    if startup.finish_boot_list(now, is_answered=is_answered):
        actions.report_ready()


def go_round(engine: Engine, startup: Startup, actions: RoundActions, now: float) -> None:
    """Do what is due at `now` (monotonic, seconds), then resolve requests once.

    Opened late is what takes long and is not needed for the first load: the trace, then the watch, each in a round.
    """
    if actions.pop_changes(now):
        actions.watch_files()  # before they are read: what changes meanwhile is an event
        actions.handle(FilesChanged())
        actions.watch_files()  # directories that are new by what was read
    actions.handle(Tick())
    # Before a thousand plans that no unit ordered after kmodd waits for.
    _finish_boot_list(engine, startup, actions, now)
    # Also while uevents keep coming: each round reads many of them first, and equal ones are merged by then.
    actions.handle(Advance())
    if startup.phase == "late_opens" and (not engine.can_advance(now) or now >= startup.until):
        is_opening = actions.open_trace()
        if not is_opening and startup.can_open(now, devices_answered=engine.devices_answered):
            actions.open_watch(now)
            actions.handle(WatchOpened())
            startup.finish()
    if engine.devices_answered:
        actions.handle(BootFinished())
        actions.settle()
