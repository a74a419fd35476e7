"""Split the line of /proc/PID/stat (proc_pid_stat(5)); every process may read the fields that are named here."""

from __future__ import annotations

PF_KTHREAD = 0x00200000
"""Flag of a thread of the kernel (include/linux/sched.h)."""

STATE, PARENT, FLAGS, UTIME, STIME, START = 0, 1, 6, 11, 12, 19
"""Places among the fields of `split_stat`; UTIME, STIME and START are in clock ticks."""


def split_stat(line: bytes) -> tuple[bytes, list[bytes]]:
    """Return the name, which can contain any bytes, and the fields behind it, from the third on.

    Of a line that is cut off, fields are missing.
    """
    head, end, rest = line.rpartition(b")")
    return head.partition(b"(")[2], rest.split() if end else []
