"""Identify the process of a thread from /proc, as a `Requester`.

Everything is read below one open directory, which refers to the thread, not to its number: once the thread has ended,
reads fail (ESRCH), even if another thread has the number.

The program and the namespaces of another process are readable with CAP_SYS_PTRACE only, even for root, as other
processes of root have capabilities that the daemon lacks (ptrace(2), "access mode checking"). The rest is readable by
every user.

The path of the program is that in its own mount namespace, which a container can choose; so it identifies a program
only if `container` is false.
"""

from __future__ import annotations

import contextlib
import os
import re
import time

from kmodd.dataclass import dataclass
from kmodd.kernel.proc_stat import FLAGS, PARENT, PF_KTHREAD, START, STATE, split_stat
from kmodd.kernel.requester import Requester
from kmodd.text import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_UNSET: Final = 2**32 - 1
"""loginuid of a process outside any login (include/linux/audit.h)."""
_GONE: Final = b"ZXx"
"""States of an ended thread (proc_pid_stat(5))."""
_AT_ONCE: Final = 16384
"""Bytes of one read. The kernel generates such a file at the first read, and returns it whole if it fits."""
_PAUSE: Final = 0.0005
"""Seconds between two looks at a thread that is about to wait."""
_HELPER_WAIT: Final = "call_usermodehelper"
"""Beginning of the name of the kernel function in which a thread waits for its helper (kernel/umh.c)."""

_SLICE: Final = re.compile(r"[A-Za-z0-9:_.\\@-]+\.slice")
_UNIT: Final = re.compile(r"[A-Za-z0-9:_.\\@-]+\.(?:service|scope|socket|mount|swap)")


@dataclass(frozen=True, slots=True)
class Namespaces:
    """The two namespaces that distinguish a container, each as device and inode."""

    user: tuple[int, int]
    pid: tuple[int, int]


def initial_namespaces(proc: str = "/proc") -> Namespaces:
    """Return the namespaces of PID 1. Raises OSError: EACCES without CAP_SYS_PTRACE."""
    return _namespaces(f"{proc}/1/")


def requester_of(
    tid: int, asked_ns: int, initial: Namespaces, proc: str = "/proc", until: float = 0.0
) -> Requester | None:
    """Return the process of thread `tid`, which made a request at `asked_ns` (CLOCK_BOOTTIME) and waits for its helper.

    initial: namespaces of the host. until: when a thread that still runs must be waiting at the latest (monotonic,
    seconds). Returns None if the thread does not wait for a helper, has ended, another one has its number, or a
    required attribute cannot be read. An optional one that cannot be read is empty (a kernel thread has no program).
    """
    try:
        folder = os.open(f"{proc}/{tid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _read(folder, asked_ns, initial, proc, until)
    except (OSError, ValueError, LookupError):
        return None
    finally:
        os.close(folder)


def _read(folder: int, asked_ns: int, initial: Namespaces, proc: str, until: float) -> Requester | None:
    # `Name:` comes first and has its line ends escaped, so the process cannot forge the lines below.
    status = _text(folder, "status")
    container = _namespaces("", folder) != initial
    exe = cgroup = ""
    loginuid = None
    with contextlib.suppress(OSError):
        exe = os.readlink("exe", dir_fd=folder)
    with contextlib.suppress(OSError):
        # `0::PATH` is the only line, or the last one
        cgroup = f"\n{_text(folder, 'cgroup')}".partition("\n0::")[2].partition("\n")[0]
    with contextlib.suppress(OSError, ValueError):
        loginuid = int(_text(folder, "loginuid"))
    name, fields = split_stat(_bytes(folder, "stat"))
    unit = unit_of(cgroup)
    requester = Requester(
        pid=int(_first_word(status, "Tgid")),
        comm=decode(name),
        exe=exe,
        uid=int(_first_word(status, "Uid")),
        loginuid=None if loginuid == _UNSET else loginuid,
        cgroup=cgroup,
        unit=unit,
        container=container,
        command=_runner_above(fields, proc) if not unit or unit.startswith("kmodd-command@") else 0,
        is_kernel=bool(int(fields[FLAGS]) & PF_KTHREAD),
    )
    # Last, to show that the thread has waited all along.
    return requester if _made_request(folder, fields, asked_ns, until) else None


def _runner_above(fields: list[bytes], proc: str) -> int:
    """Return the ID of the nearest ancestor that runs a command for the daemon; 0: there is none, or it has ended.

    It adopts the orphans of its command (kmodd/loader/command_runner.py). fields: of `split_stat`.
    """
    with contextlib.suppress(OSError, ValueError, LookupError):
        while (pid := int(fields[PARENT])) > 1:
            with open(f"{proc}/{pid}/stat", "rb") as file:
                name, fields = split_stat(file.read())
            if name == b"kmodd-command":
                return pid
    return 0


def _first_word(status: str, key: str) -> str:
    """Return the first word of a line of `status`. Raises ValueError or IndexError if there is none."""
    begin = status.index(f"\n{key}:\t") + len(key) + 3
    return status[begin : status.index("\n", begin)].split(None, 1)[0]


def _made_request(folder: int, fields: list[bytes], asked_ns: int, until: float) -> bool:
    """Return whether this thread waits for a helper, and is not a later one with the number of the requester.

    fields: of `split_stat`. The start time has a resolution of one tick. A thread that executes a program
    may have taken it over, so it does not distinguish threads of a process.
    """
    state, start = fields[STATE], int(fields[START]) * _TICK_NS
    if state in _GONE or start > asked_ns:
        return False
    while not _text(folder, "wchan").startswith(_HELPER_WAIT):
        if state != b"R" or time.monotonic() >= until:
            return False
        time.sleep(_PAUSE)  # the kernel starts the helper before the thread sleeps, which needs a processor for it
        state = split_stat(_bytes(folder, "stat"))[1][STATE]
    return True


def _namespaces(prefix: str, folder: int | None = None) -> Namespaces:
    user, pid = os.stat(f"{prefix}ns/user", dir_fd=folder), os.stat(f"{prefix}ns/pid", dir_fd=folder)
    return Namespaces((user.st_dev, user.st_ino), (pid.st_dev, pid.st_ino))


def _text(folder: int, name: str) -> str:
    return decode(_bytes(folder, name))


def _bytes(folder: int, name: str) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        data = os.read(fd, _AT_ONCE)
        while len(data) % _AT_ONCE == 0 and (more := os.read(fd, _AT_ONCE)):
            data += more
    finally:
        os.close(fd)
    return data


def unit_of(cgroup: str) -> str:
    """Return the system unit of a cgroup path, empty if there is none.

    As in journald's _SYSTEMD_UNIT= (systemd, cg_path_get_unit): the first component after the slices. Components below
    it, such as units of a user manager, are not used, as the owner of the unit can name them freely.
    """
    for part in cgroup.split("/"):
        name = part.removeprefix("_")  # prefix of names that clash with the kernel's own (systemd, cg_escape)
        if name and not _SLICE.fullmatch(name):
            return name if _UNIT.fullmatch(name) else ""
    return ""
