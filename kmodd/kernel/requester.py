"""The process behind a module request of the kernel: `Requester`."""

from __future__ import annotations

from kmodd.dataclass import dataclass


@dataclass(frozen=True, slots=True)
class Requester:
    """A process while it waits for the kernel's request, as seen from the initial namespaces."""

    pid: int
    """ID of the process; the kernel's trace has that of the thread. 0: it is not told."""
    comm: str
    exe: str
    """Path of the executable; empty if it cannot be read, or for a kernel thread."""
    uid: int
    """Real user ID in the initial user namespace."""
    loginuid: int | None
    """Login user ID of the audit subsystem; None if it is unset or unsupported."""
    cgroup: str
    """Path in the unified hierarchy, `/system.slice/x.service`."""
    unit: str
    """The systemd unit of the cgroup; empty if there is none."""
    container: bool
    """The user or PID namespace is not that of PID 1. Capabilities are no criterion: they are full in a container."""
    command: int = 0
    """ID of the runner of the install or remove command that the process belongs to; 0: it belongs to none."""
    is_kernel: bool = False
    """Whether it is a thread of the kernel."""

    def is_deputy(self, request: str) -> bool:
        """Return whether it makes this request for a process that is not known, with its own rights in their place.

        The kernel looks up the parts of a cipher in a thread of its own (crypto/algboss.c).
        """
        return self.is_kernel and request.startswith("crypto-")
