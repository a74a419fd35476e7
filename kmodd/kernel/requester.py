"""Who made the kernel ask for a module: a `Requester`, as far as it could be told."""

from __future__ import annotations

from kmodd.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Requester:
    """A process, as the initial namespaces see it, at the moment in which it waited for the kernel's request."""

    pid: int
    """Of the process; the kernel's trace names the thread."""
    comm: str
    exe: str
    """Path of its program; empty: it could not be read (a kernel thread has none)."""
    uid: int
    """Real user id in the initial user namespace."""
    loginuid: int | None
    """audit's login user id; None: unset, or the kernel keeps none."""
    cgroup: str
    """Path in the unified hierarchy, `/system.slice/x.service`."""
    unit: str
    """The systemd unit that the cgroup stands for; empty: none."""
    container: bool
    """Its user or pid namespace is not that of PID 1. Never judged by capabilities, which are full inside one."""
