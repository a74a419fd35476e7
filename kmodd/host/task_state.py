"""Whether a task is on a processor or asleep, from /proc/PID/stat."""

from __future__ import annotations

from kmodd.dataclass import dataclass
from kmodd.kernel.proc_stat import STATE, STIME, UTIME, split_stat

_ASLEEP = (b"S", b"D")
"""Letters of a task that waits, interruptibly or not (proc_pid_stat(5))."""


@dataclass(frozen=True, slots=True)
class TaskState:
    """A task at one moment."""

    is_asleep: bool
    ticks: int
    """Processor time so far, in clock ticks: utime and stime."""


def task_state(pid: int, proc: str = "/proc") -> TaskState | None:
    """Return what the main thread of `pid` does; None if it has ended or cannot be seen."""
    try:
        with open(f"{proc}/{pid}/stat", "rb", buffering=0) as file:
            _, fields = split_stat(file.read())
        return TaskState(fields[STATE] in _ASLEEP, int(fields[UTIME]) + int(fields[STIME]))
    except (OSError, ValueError, LookupError):
        return None
