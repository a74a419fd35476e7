"""The processes that have what the daemon has not: the spawner of loaders, and the reader of /proc. `HelperProcesses`.

This file imports little, so that `kmodd run` can have systemd start them before its other imports.
"""

from __future__ import annotations

from kmodd.dataclass import dataclass
from kmodd.host.requesters import Requesters
from kmodd.loader.spawner import Spawner


@dataclass(frozen=True, slots=True)
class HelperProcesses:
    """Connections to both; None: not asked for, or for the spawner not there yet, which is tried again later."""

    spawner: Spawner | None = None
    requesters: Requesters | None = None

    @classmethod
    def of_systemd(cls, *, answers_kernel: bool) -> HelperProcesses:
        """Have systemd start the spawner and, for a daemon that answers the kernel's requests, the reader of /proc."""
        try:
            spawner = Spawner.of_systemd()
        except OSError:
            spawner = None
        return cls(spawner, Requesters.of_systemd() if answers_kernel else None)

    @classmethod
    def of_ours(cls, root: str, *, answers_kernel: bool) -> HelperProcesses:
        """Start them as children of this process, which still has all capabilities.

        root: prefix of the paths that loaders trust. Raises OSError.
        """
        from kmodd.loader.trusted_paths import Trusted  # only here: under systemd the daemon does not need it

        return cls(Spawner.of_ours(Trusted.below(root)), Requesters.of_ours() if answers_kernel else None)
