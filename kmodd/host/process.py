"""Who a thread is: what /proc says of it, as a `Requester`.

All is read below one open folder. It stands for the thread itself, not for its number: once the thread is gone, reading
there fails (ESRCH), whoever has the number then.

A thread of another user shows its program and its namespaces only to CAP_SYS_PTRACE (ptrace(2), "access mode checking";
root alone is not enough, for root's own processes hold capabilities that the daemon has not). All else is open to all.

The path of the program is as its own mount namespace has it: inside a container it may be any. So it proves something
only where `container` is false.
"""

from __future__ import annotations

import contextlib
import os
import re

from kmodd.dataclass import dataclass
from kmodd.kernel.requester import Requester
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_UNSET: Final = 2**32 - 1
"""loginuid before anybody logged in (include/linux/audit.h)."""
_GONE: Final = "ZXx"
"""States of a thread that has ended (proc_pid_stat(5))."""
_AT_ONCE: Final = 16384
"""Bytes that one read asks for. These files are made anew by each read from the start, and given whole if they fit."""
_HELPER_WAIT: Final = "call_usermodehelper"
"""The kernel's function in which a thread waits for its helper begins like this (kernel/umh.c)."""

_SLICE: Final = re.compile(r"[A-Za-z0-9:_.\\@-]+\.slice")
_UNIT: Final = re.compile(r"[A-Za-z0-9:_.\\@-]+\.(?:service|scope|socket|mount|swap)")


@dataclass(frozen=True, slots=True)
class Namespaces:
    """The two namespaces that make a container, each as device and inode."""

    user: tuple[int, int]
    pid: tuple[int, int]


def initial_namespaces(proc: str = "/proc") -> Namespaces:
    """Those of PID 1. Raises OSError: EACCES without CAP_SYS_PTRACE."""
    return _namespaces(f"{proc}/1/")


def requester_of(tid: int, asked_ns: int, initial: Namespaces, proc: str = "/proc") -> Requester | None:
    """The process of thread `tid`, which asked at `asked_ns` (CLOCK_BOOTTIME).

    None: it is gone, or another one has its number by now, or what must be known of it cannot be read. What else cannot
    be read is empty (a kernel thread has no program).
    """
    try:
        folder = os.open(f"{proc}/{tid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _read(folder, asked_ns, initial)
    except (OSError, ValueError, LookupError):
        return None
    finally:
        os.close(folder)


def _read(folder: int, asked_ns: int, initial: Namespaces) -> Requester | None:
    # `Name:` comes first, with its line ends escaped, so no line below is made up by the process.
    status = _text(folder, "status")
    container = _namespaces("", folder) != initial
    exe = cgroup = ""
    loginuid = None
    with contextlib.suppress(OSError):
        exe = os.readlink("exe", dir_fd=folder)
    with contextlib.suppress(OSError):
        # `0::PATH` alone, or the last line
        cgroup = f"\n{_text(folder, 'cgroup')}".partition("\n0::")[2].partition("\n")[0]
    with contextlib.suppress(OSError, ValueError):
        loginuid = int(_text(folder, "loginuid"))
    # Last: it was alive all the time. In the parentheses any character may stand, parentheses and line ends among them.
    head, _, fields = _text(folder, "stat").rpartition(")")
    if not _is_who_asked(folder, fields.split(), asked_ns):
        return None
    return Requester(
        pid=int(_first_word(status, "Tgid")),
        comm=head.partition("(")[2],
        exe=exe,
        uid=int(_first_word(status, "Uid")),
        loginuid=None if loginuid == _UNSET else loginuid,
        cgroup=cgroup,
        unit=unit_of(cgroup),
        container=container,
    )


def _first_word(status: str, key: str) -> str:
    """Of a line of `status`; raises ValueError, IndexError where there is none."""
    begin = status.index(f"\n{key}:\t") + len(key) + 3
    return status[begin : status.index("\n", begin)].split(None, 1)[0]


def _is_who_asked(folder: int, fields: list[str], asked_ns: int) -> bool:
    """Is this the thread that asked, and not one that got its number afterwards? `fields`: of `stat`, the third first.

    The start is known to a tick, and many a program asks in the very tick in which it starts. Then it must be seen
    waiting for a helper: whoever only got the number does not.
    """
    state, start = fields[0], int(fields[19]) * _TICK_NS  # fields 3 and 22 of proc_pid_stat(5)
    if state in _GONE or start > asked_ns:
        return False
    return start + _TICK_NS <= asked_ns or _text(folder, "wchan").startswith(_HELPER_WAIT)


def _namespaces(prefix: str, folder: int | None = None) -> Namespaces:
    user, pid = os.stat(f"{prefix}ns/user", dir_fd=folder), os.stat(f"{prefix}ns/pid", dir_fd=folder)
    return Namespaces((user.st_dev, user.st_ino), (pid.st_dev, pid.st_ino))


def _text(folder: int, name: str) -> str:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        data = os.read(fd, _AT_ONCE)
        while len(data) % _AT_ONCE == 0 and (more := os.read(fd, _AT_ONCE)):
            data += more
    finally:
        os.close(fd)
    return decode(data)


def unit_of(cgroup: str) -> str:
    """The system's unit that a path in the hierarchy belongs to, empty if to none.

    As journald's _SYSTEMD_UNIT= has it (systemd, cg_path_get_unit): slices at the front are passed over, and the next
    part is the unit. What is below it, a user's own units among that, anybody may have named who owns it.
    """
    for part in cgroup.split("/"):
        name = part.removeprefix("_")  # put before names that would clash with the kernel's own (cg_escape)
        if name and not _SLICE.fullmatch(name):
            return name if _UNIT.fullmatch(name) else ""
    return ""
