"""Give up capabilities for good: the daemon does so itself if no unit file has done it.

Runs in the daemon without systemd, after it has started the spawner. Calls prctl(2) and capset(2) of the C library:
Debian's bindings (python3-prctl, python3-cap-ng) are missing on small systems, where the daemon would keep every
capability.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

_NUMBERS = {"CAP_SETPCAP": 8, "CAP_NET_ADMIN": 12, "CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21, "CAP_SYSLOG": 34}
"""The capabilities that `drop` can keep, and CAP_SETPCAP (include/uapi/linux/capability.h)."""

_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_VERSION_3 = 0x20080522
"""_LINUX_CAPABILITY_VERSION_3 of capset(2): each set has two words of 32 bits."""

_Set = ctypes.c_uint32 * 6
"""effective, permitted, inheritable; then the same for the capabilities from 32 on."""


def drop(keep: Collection[str]) -> None:
    """Give up every capability except `keep` ("CAP_SYS_PTRACE"), in this thread and all that it forks or executes.

    They cannot be regained: the bounding set loses them, and no program can add any (PR_SET_NO_NEW_PRIVS). A capability
    in `keep` that this thread does not have is not added, so the call works for any user. Call it before there is a
    second thread, as each has its own sets; children that are running keep theirs.

    Raises OSError if the kernel refuses, KeyError for an unknown name.
    """
    kept = {_NUMBERS[name] for name in keep}
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    sets = _Set()
    _call(libc.capget, header, sets)
    has = sets[0] | sets[3] << 32
    if has >> _NUMBERS["CAP_SETPCAP"] & 1:
        for number in range(_last() + 1):
            if number not in kept:
                _call(libc.prctl, _PR_CAPBSET_DROP, number, 0, 0, 0)
    # Without CAP_SETPCAP the bounding set stays as it is, without effect under PR_SET_NO_NEW_PRIVS.
    _call(libc.prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _call(libc.prctl, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    mask = sum(1 << number for number in kept)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    _call(libc.capset, header, _Set(sets[0] & low, sets[1] & low, 0, sets[3] & high, sets[4] & high, 0))


def _last() -> int:
    """Return the highest capability of this kernel (capabilities(7)); 63, the last bit of a set, without /proc."""
    try:
        with open("/proc/sys/kernel/cap_last_cap") as file:
            return int(file.read())
    except OSError:
        return 63


def _call(function: Callable[..., int], *arguments: object) -> None:
    if function(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
