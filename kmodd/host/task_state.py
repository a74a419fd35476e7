"""Whether a task is on a processor or asleep, from /proc/PID/stat. Every process may read these fields of it."""

from __future__ import annotations

from kmodd.dataclass import dataclass

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
            fields = file.read().rpartition(b")")[2].split()  # the name in parentheses can contain any character
        return TaskState(fields[0] in _ASLEEP, int(fields[11]) + int(fields[12]))
    except (OSError, ValueError, LookupError):
        return None
