"""CPU time of a process from its start to its end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence


def cpu_milliseconds(command: Sequence[str]) -> float:
    """Run a command without output; return its user and system time in ms, with that of the children it waited for.

    Raises CalledProcessError for an exit status other than 0.
    """
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    return (usage.ru_utime + usage.ru_stime) * 1e3


def output(command: Sequence[str]) -> bytes:
    """Return the output of a command. Raises CalledProcessError for an exit status other than 0."""
    return subprocess.run(command, check=True, capture_output=True).stdout
