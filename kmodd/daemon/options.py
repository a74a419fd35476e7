"""How the daemon was started: `DaemonOptions`."""

from __future__ import annotations

from kmodd.dataclass import dataclass
from kmodd.host.netlink import RECEIVE_BUFFER
from kmodd.host.paths import CONTROL_SOCKET


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """How the daemon was started."""

    dry_run: bool = False
    spawn_loaders: bool = False
    """The daemon starts a spawner; else systemd does."""
    run: bool = False
    """It is the machine's own: it keeps below /run what a later daemon needs, and answers the kernel."""
    log_level: int | None = None
    """The least important level that is logged, as in syslog(3); None: that of kmodd.conf."""
    control_path: str = CONTROL_SOCKET
    receive_buffer: int = RECEIVE_BUFFER
    """Bytes."""
